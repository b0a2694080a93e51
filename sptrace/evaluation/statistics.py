"""Means with bootstrap intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 0


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % interval.

    Arguments:
        mean: of the scores.
        low, high: percentiles 2.5 and 97.5 of the means of bootstrap resamples (Efron, 1979).
        count: number of scores.
    """

    mean: float
    low: float
    high: float
    count: int


def estimate(scores: NDArray[np.float64]) -> Estimate:
    """Mean and interval of scores, float64 [N]; those that are nan are left out."""
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    random = np.random.default_rng(SEED)
    means = np.concatenate(
        [
            scores[random.integers(0, len(scores), (RESAMPLES // 10, len(scores)))].mean(axis=1)
            for _ in range(10)
        ]
    )
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(scores.mean()), float(low), float(high), len(scores))
