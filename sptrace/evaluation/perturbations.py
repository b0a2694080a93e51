"""Metrics that cover up square patches of the picture, and what the network then says.

What the network says does not depend on the explanation: it is asked once a picture, for all methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sptrace.evaluation.predictor import Predictor

Square = tuple[slice, slice]
Scores = NDArray[np.float64]
REPEATS = 5
"""Draws of noise per patch."""


def sizes(side: int) -> tuple[int, int]:
    """The two patch sizes of infidelity, in pixels: 112 and 56 of 224, and likewise of other sizes."""
    return side // 2, side // 4


def patches(height: int, width: int, size: int) -> Iterator[Square]:
    """The squares of a grid, row by row; those at the lower and right border may be smaller."""
    for top in range(0, height, size):
        for left in range(0, width, size):
            yield slice(top, top + size), slice(left, left + size)


@dataclass(frozen=True)
class Covered:
    """A picture with patches covered up, and how far that lowers the target's logit.

    Arguments:
        image: float32 [3, H, W].
        noisy: per patch size, the grid of squares; the noise that replaced them, float32 [3, H, W] for every repeat,
            one square after the other; and f(x) - f(x - I) after every square, float64 [repeats, squares].
        grid: the squares of the smaller size, each covered alone, by 0.
        grid_drops: the same of those, float64 [squares].
    """

    image: NDArray[np.float32]
    noisy: list[tuple[list[Square], list[NDArray[np.float32]], Scores]]
    grid: list[Square]
    grid_drops: Scores


def cover(predict: Predictor, image: NDArray[np.float32], target: int, seed: int) -> Covered:
    """Cover up the patches of a picture, float32 [3, H, W] in [-1, 1], and ask the network."""
    random = np.random.default_rng(seed)
    height, width = image.shape[1:]
    grids = [list(patches(height, width, size)) for size in sizes(min(height, width))]
    noise: list[list[NDArray[np.float32]]] = [[] for _ in grids]
    variants = [image]
    for _ in range(REPEATS):
        for grid, draws in zip(grids, noise, strict=True):
            draws.append(np.empty_like(image))
            changed = image
            for rows, columns in grid:
                shape = image[:, rows, columns].shape
                draws[-1][:, rows, columns] = random.uniform(-1, 1, shape)
                changed = changed.copy()
                changed[:, rows, columns] = draws[-1][:, rows, columns]
                variants.append(changed)
    for rows, columns in grids[-1]:
        changed = image.copy()
        changed[:, rows, columns] = 0
        variants.append(changed)
    scores = predict.score(np.stack(variants), target)
    drops = scores[0] - scores[1:]
    count = sum(map(len, grids))
    by_repeat = drops[: REPEATS * count].reshape(REPEATS, count)
    parts = np.split(by_repeat, np.cumsum([len(grid) for grid in grids])[:-1], axis=1)
    return Covered(image, list(zip(grids, noise, parts, strict=True)), grids[-1], drops[REPEATS * count :])


def infidelity(covered: Covered, attribution: NDArray[np.float32], scaling: bool = True) -> float:
    """E[(beta <a, I> - (f(x) - f(x - I)))^2] (Yeh et al., arXiv 1901.09392), lower is better.

    I is the difference that noise makes in the squares of a grid up to one of them: as in Quantus, every square is
    replaced on top of those before it. beta = E[ab] / E[a^2] is the scale in which the explanation looks best, one per
    patch size: infidelity with optimal scaling (arXiv 2507.22832).

    Arguments:
        covered: the picture.
        attribution: float32 [3, H, W].
        scaling: False for beta = 1, as in Quantus.
    """
    errors = []
    for grid, noise, b in covered.noisy:
        a = np.array([_products(grid, attribution, covered.image - draw) for draw in noise])
        power = float((a * a).mean())
        beta = (float((a * b).mean()) / power if power > 0 else 0.0) if scaling else 1.0
        errors.append(float(((beta * a - b) ** 2).mean()))
    return float(np.mean(errors))


def _products(
    grid: list[Square], attribution: NDArray[np.float32], difference: NDArray[np.float32]
) -> Scores:
    """<attribution, I> after every square."""
    product = (attribution * difference).sum(axis=0, dtype=np.float64)
    return np.cumsum([product[rows, columns].sum() for rows, columns in grid])


def faithfulness_correlation(covered: Covered, attribution: NDArray[np.float32]) -> float:
    """Pearson's correlation over a grid's squares, between |attribution| in one and f(x) - f(x with that one at 0).

    Bhatt et al., arXiv 2005.00631, with squares in place of random subsets (arXiv 2507.22832). Higher is better; 0 if
    one of the two is constant.
    """
    size = np.abs(attribution).sum(axis=0, dtype=np.float64)
    return pearson(
        np.array([size[rows, columns].sum() for rows, columns in covered.grid]), covered.grid_drops
    )


def pearson(a: Scores, b: Scores) -> float:
    """Pearson's correlation of two vectors; 0 if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0
