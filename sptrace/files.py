"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sptrace.errors import SptraceError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_writable(path: str | os.PathLike[str]) -> None:
    """Fail before the work rather than after it, if a file cannot be written at `path`.

    Raises:
        SptraceError: the folder is missing or read-only, or `path` is something else than a file.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise SptraceError(f"cannot write {path}: it is a folder; give the name of a file in it")
    if target.exists() and not target.is_file():
        # Renaming over a device or a pipe would delete it.
        raise SptraceError(f"cannot write {path}: it is not an ordinary file; give another name")
    if not target.parent.is_dir():
        raise SptraceError(f"cannot write {path}: the folder {target.parent} does not exist; create it first")
    if not os.access(target.parent, os.W_OK):
        raise SptraceError(f"cannot write {path}: no permission to create files in {target.parent}")


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
    # Not `tempfile`: its files are private to their owner, and stay so after the rename.
    temporary = target.with_name(f".sptrace-{secrets.token_hex(8)}{target.suffix}")
    try:
        try:
            temporary.touch(exist_ok=False)
            yield temporary
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise SptraceError(f"cannot write {path}: {error.strerror}") from error
        if isinstance(error, PermissionError) and Path(error.filename or "") == temporary:
            raise SptraceError(f"cannot write {path}: no permission to create or replace it") from error
        raise
