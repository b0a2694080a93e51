"""Files of pictures and labels that are damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.evaluation.data import read

HOW = Preprocessing(size=(2, 2))


@pytest.mark.parametrize(
    "rows",
    [
        "",
        "a.png,99999999999999999999\n",
        "a.png,-1\n",
        "a.png\n",
        "a.png,0\n\0,1\n",
        '"' + "a" * 200_000 + '",0\n',
    ],
)
def test_labels_that_are_none(tmp_path: Path, rows: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    with pytest.raises(SptraceError):
        read(tmp_path, tmp_path / "labels.csv", HOW, 9)


def test_labels_of_pictures_in_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name in ("a.png", "inner/b.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("file,label\ninner/b.png,3\na.png,1\n")
    assert np.array_equal(read(tmp_path, tmp_path / "labels.csv", HOW, 9).labels, [3, 1])


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": np.zeros((3, 2, 2, 3), np.uint8)},
        {"x": np.zeros((3, 2, 2, 3), np.uint8), "y": np.array(["a", "b", "c"])},
        {"x": np.zeros((3, 2, 2, 3), np.uint8), "y": np.zeros((3, 1), np.int64)},
        {"x": np.uint8(1), "y": np.int64(1)},
        {"x": np.zeros((3, 2, 2, 3), np.uint8), "y": np.array([{}, 1, 2], object)},
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(tmp_path / "pictures.npz", **arrays)
    with pytest.raises(SptraceError, match="it needs x, uint8"):
        read(tmp_path / "pictures.npz", None, HOW, 9)


def test_arrays_that_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "pictures.npz"
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (b"", b"PK", (tmp_path / "array.npy").read_bytes(), b"\x93NUMPY\x01\x00\x08\x00{'a': (\n"):
        path.write_bytes(content)
        with pytest.raises(SptraceError, match=r"cannot read .* it needs x, uint8"):
            read(path, None, HOW, 9)
