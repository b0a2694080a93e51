"""Metrics that change a picture's numbers step by step, in the order of their attribution.

Their definitions are Quantus's (Hedstroem et al., arXiv 2202.06861), which asks the network about one change at a time;
here it is asked about many at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from sptrace.evaluation.perturbations import pearson
from sptrace.evaluation.predictor import Predictor

MONOTONICITY_DRAWS = 2
"""Draws of noise a step, where Quantus's default is 100: that would take a day."""


def features_in_step(image: NDArray[np.float32]) -> int:
    """3136 of the numbers of a 224 x 224 picture, and likewise of other sizes: 48 steps."""
    return max(1, image.size // 48)


def faithfulness_estimate(
    predict: Predictor, image: NDArray[np.float32], target: int, attribution: NDArray[np.float32]
) -> float:
    """Correlation between the attribution of a step's numbers and the drop of the logit when they become black.

    Alvarez-Melis and Jaakkola, arXiv 1806.07538. Higher is better; nan for an attribution that is 0 everywhere.

    Arguments:
        predict: gives logits.
        image: float32 [3, H, W]. Black is its smallest number.
        target: the class.
        attribution: float32 [3, H, W].
    """
    if not attribution.any():
        return float("nan")
    steps = _steps(image, -attribution)
    drops = predict.score(image[None], target) - predict.score(_changed(image, steps, image.min()), target)
    return pearson(_sums(attribution, steps), drops)


def monotonicity_correlation(
    predict: Predictor, image: NDArray[np.float32], target: int, attribution: NDArray[np.float32], seed: int
) -> float:
    """Rank correlation between the size of a step's attribution and how much noise in its numbers moves the logit.

    Nguyen and Martinez, arXiv 2007.07584. The noise is one number of [0, 1] for a whole step. Higher is better; nan for
    an attribution that is 0 everywhere.

    Arguments:
        predict: gives logits.
        image: float32 [3, H, W].
        target: the class.
        attribution: float32 [3, H, W].
        seed: of the noise.
    """
    if not attribution.any():
        return float("nan")
    size = np.abs(attribution)
    steps = _steps(image, size)
    noise = np.random.RandomState(seed).uniform(size=(len(steps), MONOTONICITY_DRAWS))
    moves = np.zeros(len(steps))
    before = predict.score(image[None], target)
    for draw in noise.T:
        moves += (predict.score(_changed(image, steps, draw), target) - before) ** 2
    return float(spearmanr(_sums(size, steps), moves).statistic)


def _steps(image: NDArray[np.float32], key: NDArray[np.float32]) -> list[NDArray[np.int64]]:
    """Indices into the flat picture, by rising key."""
    order = np.argsort(key, axis=None, kind="stable")
    return np.split(order, range(features_in_step(image), image.size, features_in_step(image)))


def _changed(
    image: NDArray[np.float32], steps: list[NDArray[np.int64]], numbers: float | NDArray[np.float64]
) -> NDArray[np.float32]:
    """Copies of the picture, float32 [steps, 3, H, W], in each of which one step's numbers are replaced."""
    changed = np.repeat(image.reshape(1, -1), len(steps), axis=0)
    for copy, step, number in zip(changed, steps, np.broadcast_to(numbers, len(steps)), strict=True):
        copy[step] = number
    return changed.reshape(-1, *image.shape)


def _sums(numbers: NDArray[np.float32], steps: list[NDArray[np.int64]]) -> NDArray[np.float64]:
    flat = numbers.reshape(-1).astype(np.float64)
    return np.array([flat[step].sum() for step in steps])
