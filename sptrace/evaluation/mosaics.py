"""Focus: does an explanation of a class stay on the tiles of a mosaic that show it?

Four pictures, two of them of the class, in a random order (Arias-Duart et al., arXiv 2109.15035).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sptrace.errors import SptraceError


@dataclass(frozen=True)
class Mosaic:
    """Two by two tiles.

    Arguments:
        image: float32 [3, H, W].
        target: the class of two tiles.
        right: which tiles show it, bool [2, 2].
    """

    image: NDArray[np.float32]
    target: int
    right: NDArray[np.bool_]


def mosaics(tiles: NDArray[np.float32], labels: NDArray[np.int64], count: int, seed: int) -> list[Mosaic]:
    """Draw mosaics.

    Arguments:
        tiles: float32 [N, 3, H / 2, W / 2].
        labels: int64 [N].
        count: number of mosaics.
        seed: of the draws.

    Raises:
        SptraceError: no class has two pictures, or there is only one class.
    """
    random = np.random.default_rng(seed)
    twice = require_pairs(labels)
    drawn = []
    for _ in range(count):
        target = random.choice(twice)
        ours = random.choice(np.flatnonzero(labels == target), 2, replace=False)
        others = random.choice(np.flatnonzero(labels != target), 2, replace=len(labels) < 4)
        order = random.permutation(4)
        chosen = tiles[np.concatenate([ours, others])[order]]
        drawn.append(Mosaic(_joined(chosen), int(target), (order < 2).reshape(2, 2)))
    return drawn


def require_pairs(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The classes with two pictures or more.

    Raises:
        SptraceError: no class has two pictures, or there is only one class.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    if sizes.max(initial=0) < 2 or len(classes) < 2:
        raise SptraceError("mosaics need two classes, and two pictures of one of them: give more pictures")
    return classes[sizes >= 2]


def _joined(tiles: NDArray[np.float32]) -> NDArray[np.float32]:
    upper, lower = np.concatenate(tiles[:2], axis=2), np.concatenate(tiles[2:], axis=2)
    return np.concatenate([upper, lower], axis=1)


def focus(mosaic: Mosaic, attribution: NDArray[np.float32]) -> float:
    """The share of the positive relevance, input times attribution, that falls on the class's two tiles.

    In [0, 1], 0.5 for an explanation that does not look; nan if no relevance is positive.

    Arguments:
        mosaic: the picture.
        attribution: float32 [3, H, W].
    """
    relevance = np.maximum((mosaic.image * attribution).astype(np.float64), 0).sum(axis=0)
    height, width = relevance.shape
    by_tile = relevance.reshape(2, height // 2, 2, width // 2).sum(axis=(1, 3))
    total = by_tile.sum()
    return float(by_tile[mosaic.right].sum() / total) if total > 0 else float("nan")
