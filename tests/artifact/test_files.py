from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from sptrace.artifact.files import folder_replacing, new_folders, replacing, require_writable
from sptrace.errors import SptraceError


def test_a_file_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "result.png"
    with replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".png"
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["result.png"]


def test_a_file_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_text("old")
    with target.open() as reader:
        with replacing(target) as temporary:
            temporary.write_text("new")
            assert target.read_text() == "old"
        assert reader.read() == "old", "the old file was written into, not replaced"
    assert target.read_text() == "new"


@pytest.mark.parametrize("failure", [ValueError("bad"), KeyboardInterrupt(), OSError("odd")])
def test_after_a_failure_nothing_has_changed(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "result"
    target.write_text("old")

    def write() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half of the n")
            raise failure

    with pytest.raises(type(failure)) as caught:
        write()
    assert caught.value is failure
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["result"]


def test_a_full_disk_is_an_error_of_the_user(tmp_path: Path) -> None:
    def write() -> None:
        with replacing(tmp_path / "result"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SptraceError, match="result: No space left on device"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_name_without_a_folder_means_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing("result.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "result.txt").read_text() == "new"


def test_a_symbolic_link_is_followed(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("old")
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link"
    link.symlink_to(real)
    with replacing(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_others_may_read_the_file_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with replacing(tmp_path / "result") as temporary:
            temporary.write_text("new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == 0o644


def unwritable(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    return {
        "missing folder": (tmp_path / "nowhere" / "result", "does not exist"),
        "folder": (tmp_path, "is a folder"),
        "device": (Path(os.devnull), "not an ordinary file"),
        "file as folder": (tmp_path / "file" / "result", "file is a file, no folder"),
        "file as folder's folder": (tmp_path / "file" / "folder" / "result", "does not exist"),
        "long name": (tmp_path / ("x" * 300), "File name too long"),
        "long extension": (tmp_path / f"x.{'x' * 250}", "File name too long"),
        "long path": (tmp_path / "/".join(["x" * 200] * 30), "File name too long|does not exist"),
        "full device": (Path("/dev/full"), "not an ordinary file"),
        "kernel's file system": (Path("/proc/result"), "cannot write"),
        "NUL": (tmp_path / "a\0b", "null"),
    }


@pytest.mark.parametrize("case", sorted(unwritable(Path())))
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("")
    path, message = unwritable(tmp_path)[case]
    with pytest.raises(SptraceError, match=message) as caught:
        require_writable(path)
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(SptraceError, match=message), replacing(path):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("path", [None, 3, b"result"])
def test_what_is_no_name_is_refused(path: object) -> None:
    with pytest.raises(SptraceError, match="the name of a file to write is a text or a path, not"):
        require_writable(path)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SptraceError, match="no permission"):
        require_writable(tmp_path / "result")


def test_no_permission_found_only_when_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(SptraceError, match="no permission"), replacing(tmp_path / "result"):
        pytest.fail("the block must not run")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "sites" / "site"
    with folder_replacing(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("new")
        assert not target.exists()
    assert contents(tmp_path) == {"sites/site/inner/a": "new"}


def test_a_folder_is_replaced_file_by_file(tmp_path: Path) -> None:
    target = tmp_path / "site"
    (target / "inner").mkdir(parents=True)
    (target / "inner" / "a").write_text("old")
    (target / "mine").write_text("stays")
    with folder_replacing(target) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a").write_text("new")
        assert contents(target) == {"inner/a": "old", "mine": "stays"}
    assert contents(tmp_path) == {"site/inner/a": "new", "site/mine": "stays"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_of_half_a_folder_nothing_stays(tmp_path: Path, failure: BaseException) -> None:
    expected = SptraceError if isinstance(failure, OSError) else KeyboardInterrupt

    def write() -> None:
        with folder_replacing(tmp_path / "new" / "site") as temporary:
            (temporary / "half").write_text("x")
            raise failure

    with pytest.raises(expected):
        write()
    assert os.listdir(tmp_path) == []


def test_a_folder_where_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "site"):
        with pytest.raises(SptraceError, match="is a file"), folder_replacing(path):
            pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["file"]


def test_new_folders_go_where_nothing_came_into_them(tmp_path: Path) -> None:
    def fail(name: str | None) -> None:
        with new_folders(tmp_path / "a" / "b"):
            if name is not None:
                (tmp_path / name).write_text("result")
            raise KeyError

    with pytest.raises(KeyError):
        fail(None)
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError):
        fail("a/result")
    assert contents(tmp_path) == {"a/result": "result"}
    assert not (tmp_path / "a" / "b").exists()
