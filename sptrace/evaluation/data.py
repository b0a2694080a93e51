"""The pictures that explanations are evaluated on."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.runtime import photo


@dataclass(frozen=True)
class Pictures:
    """Prepared pictures.

    Arguments:
        names: one per picture.
        images: float32 [N, 3, H, W] in [-1, 1].
        labels: int64 [N]; None if nobody gave them.
    """

    names: tuple[str, ...]
    images: NDArray[np.float32]
    labels: NDArray[np.int64] | None

    @property
    def tiles(self) -> NDArray[np.float32]:
        """The pictures in half their size, float32 [N, 3, H / 2, W / 2]."""
        height, width = self.images.shape[2:]
        halves = [_resized(image, (width // 2, height // 2)) for image in self.images]
        return np.stack(halves)


def read(source: Path, labels: Path | None, preprocessing: Preprocessing, count: int) -> Pictures:
    """Read `count` pictures of a folder or of an .npz file.

    Arguments:
        source: a folder with photographs, taken in the order of `labels` or else of their names; or an .npz file
            with x, uint8 [N, H, W, 3] in the network's size, and y, int64 [N], taken in an order drawn at random once
            and for all, because such files are often sorted by class.
        labels: a .csv file with the columns file and label, the index of the class.
        preprocessing: the network's.
        count: how many pictures at most.

    Raises:
        SptraceError: something is missing or has the wrong form.
    """
    if source.suffix == ".npz":
        if labels is not None:
            raise SptraceError(f"{source} holds its own labels: leave --labels out")
        return _arrays(source, preprocessing, count)
    found = photo.in_folder(source)
    given = None if labels is None else _labels(labels)
    paths = found if given is None else [source / name for name in given]
    paths = paths[:count]
    images = [photo.prepare(photo.read(path), preprocessing)[0] for path in paths]
    classes = None if given is None else np.array(list(given.values())[:count], np.int64)
    return Pictures(tuple(path.name for path in paths), np.stack(images), classes)


def _labels(path: Path) -> dict[str, int]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            labels = {row["file"]: int(row["label"]) for row in csv.DictReader(file)}
        if not labels or not all(0 <= label < 1 << 31 for label in labels.values()):
            raise ValueError("no indices of classes")
        return labels
    except OSError as error:
        raise SptraceError(f"cannot read {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise SptraceError(
            f"{path} is no list of labels: it needs the columns file and label, the label a class's index"
        ) from error


def _arrays(path: Path, preprocessing: Preprocessing, count: int) -> Pictures:
    wanted = "x, uint8 [N, {}, {}, 3], and y, [N]".format(*preprocessing.size)
    try:
        with np.load(path) as file:
            x, y = np.asarray(file["x"]), np.asarray(file["y"])
    except Exception as error:  # numpy raises all kinds for damaged files
        raise SptraceError(f"cannot read {path}: it needs {wanted}") from error
    pictures = x.dtype == np.uint8 and x.ndim == 4 and x.shape[1:] == (*preprocessing.size, 3)
    if not pictures or y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        given = f"x {x.dtype} {list(x.shape)} and y {y.dtype} {list(y.shape)}"
        raise SptraceError(f"{path} holds {given}: it needs {wanted}")
    order = np.random.RandomState(0).permutation(len(x))[:count]
    images = (x[order].transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)
    return Pictures(tuple(f"{path.stem}-{index:04}" for index in order), images, y[order].astype(np.int64))


def _resized(image: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    channels = [Image.fromarray(channel).resize(size, Image.Resampling.BILINEAR) for channel in image]
    return np.stack([np.asarray(channel, dtype=np.float32) for channel in channels])
