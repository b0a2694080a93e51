from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from sptrace.errors import SptraceError
from sptrace.files import replacing, require_writable


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
        "file as folder": (tmp_path / "file" / "result", "does not exist"),
    }


@pytest.mark.parametrize("case", ["missing folder", "folder", "device", "file as folder"])
def test_what_cannot_be_written_is_refused_at_once(tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("")
    path, message = unwritable(tmp_path)[case]
    with pytest.raises(SptraceError, match=message):
        require_writable(path)
    with pytest.raises(SptraceError, match=message), replacing(path):
        pytest.fail("the block must not run")
    assert os.listdir(tmp_path) == ["file"]


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
