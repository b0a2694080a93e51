"""Writing files and folders whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sptrace.errors import SptraceError

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""What may happen at any byte, and has nothing to do with what is written."""


def require_writable(path: str | os.PathLike[str]) -> None:
    """Fail before the work rather than after it, if a file cannot be written at `path`. Nothing is left there.

    Raises:
        SptraceError: the folder is missing or read-only, the name is too long, or `path` is something else than a
            file.
    """
    with _told(path):
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise SptraceError(f"cannot write {path}: it is a folder; give the name of a file in it")
        if target.exists() and not target.is_file():
            # Renaming over a device or a pipe would delete it.
            raise SptraceError(f"cannot write {path}: it is not an ordinary file; give another name")
        _require_folder(path, target.parent)
        probe = _temporary(target)
        probe.touch(exist_ok=False)
        probe.unlink()


def _require_folder(path: str | os.PathLike[str], folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SptraceError(f"cannot write {path}: {folder} is a file, no folder; give another name")
    if not folder.is_dir():
        raise SptraceError(f"cannot write {path}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise SptraceError(f"cannot write {path}: no permission to create files in {folder}")


@contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within this context whatever the system refuses is said of `path`, in one line."""
    if not isinstance(path, str | os.PathLike):
        raise SptraceError(f"the name of a file to write is a text or a path, not {type(path).__name__}")
    try:
        yield
    except PermissionError as error:
        raise SptraceError(f"cannot write {path}: no permission to create or replace it") from error
    except OSError as error:
        raise SptraceError(
            f"cannot write {os.fspath(path)[:120]}: {error.strerror}; give another name"
        ) from error
    except ValueError as error:  # a name with a NUL, which no system takes
        raise SptraceError(f"cannot write {os.fspath(path)!r}: {error}; give another name") from error


def _temporary(target: Path) -> Path:
    # Not `tempfile`: its files are private to their owner, and stay so after the rename.
    return target.with_name(f".sptrace-{secrets.token_hex(8)}{target.suffix}")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file so that `path` holds either what it held before or the finished new file.

    Yields an empty temporary file in the same folder, with the same extension. When the block ends it is
    renamed to `path`; when the block raises it is removed. A symbolic link is followed, not replaced.

    Arguments:
        path: the file to create or replace.

    Raises:
        SptraceError: `path` cannot be written, see `require_writable`, or the disk is full.
    """
    require_writable(path)
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        with _told(path):
            temporary.touch(exist_ok=False)
        try:
            yield temporary
        except OSError as error:
            if error.errno in _OF_THE_DISK:
                raise SptraceError(f"cannot write {path}: {error.strerror}") from error
            raise
        with _told(path):
            os.replace(temporary, target)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a folder so that `path` holds either what it held before or all of the new files, and others beside them.

    Yields an empty temporary folder beside `path`. When the block ends its files are moved to `path`; when the block
    raises it is removed, and so are the folders above it that had to be made.

    Raises:
        SptraceError: the folder cannot be written, or the disk is full.
    """
    with _told(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_dir():
            raise SptraceError(f"cannot write the folder {path}: it is a file; give another name")
    with new_folders(target.parent):
        temporary = target.with_name(f".sptrace-{secrets.token_hex(8)}")
        try:
            with _told(path):
                temporary.mkdir()
            try:
                yield temporary
            except OSError as error:
                if error.errno in _OF_THE_DISK:
                    raise SptraceError(f"cannot write {path}: {error.strerror}") from error
                raise
            with _told(path):
                _move(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    """A folder to where none is, at once; else its files into the one that is there."""
    if not target.exists():
        source.rename(target)
        return
    for folder, _, names in os.walk(source):
        there = target / Path(folder).relative_to(source)
        there.mkdir(exist_ok=True)
        for name in names:
            os.replace(Path(folder) / name, there / name)


@contextmanager
def new_folders(path: str | os.PathLike[str]) -> Iterator[None]:
    """Make a folder and those above it that are missing; when the block raises, those of them that stayed empty go.

    Raises:
        SptraceError: they cannot be made.
    """
    made: list[Path] = []
    try:
        with _told(path):
            target = Path(os.path.realpath(path))
            missing = [folder for folder in (target, *target.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir()
                made.append(folder)
            if not target.is_dir():
                raise SptraceError(f"cannot write into {path}: it is a file, no folder; give another name")
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()
        raise
