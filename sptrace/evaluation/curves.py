"""Insertion and deletion: how fast the class's probability comes and goes with the pixels said to matter most."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sptrace.artifact.links import probabilities
from sptrace.evaluation.predictor import Predictor

STEPS = 32
"""Equal parts of the pixels."""


def insertion_deletion(
    predict: Predictor,
    image: NDArray[np.float32],
    attribution: NDArray[np.float32],
    target: int,
    link: str = "softmax",
) -> tuple[float, float]:
    """Areas under both curves, in [0, 1] (Petsiuk et al., arXiv 1806.07421): insertion high and deletion low is good.

    Pixels in the order of their attribution, summed over the channels, are put from the picture into its blurred copy
    (insertion), or replaced by mid-grey, 0 (deletion).

    Arguments:
        predict: gives logits.
        image: float32 [3, H, W] in [-1, 1].
        attribution: of the same shape.
        target: the class.
        link: what makes probabilities of the logits, one of `sptrace.artifact.links.LINKS` but "none".
    """
    order = np.argsort(-attribution.sum(axis=0, dtype=np.float64), axis=None, kind="stable")
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size)
    limits = np.linspace(0, order.size, STEPS + 1).round()
    chosen = rank.reshape(1, 1, *image.shape[1:]) < limits[:, None, None, None]
    inserted = np.where(chosen, image, blurred(image))
    deleted = np.where(chosen, np.float32(0), image)
    shares = probabilities(link, predict(np.concatenate([inserted, deleted])), None)
    assert shares is not None
    probability = shares[:, target].astype(np.float64)
    first, second = probability[: STEPS + 1], probability[STEPS + 1 :]
    return _area(first), _area(second)


def _area(curve: NDArray[np.float64]) -> float:
    return float((curve[:-1] + curve[1:]).mean() / 2)


def blurred(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy without detail: Gaussian blur of a radius of 1/20 of the picture's width, float32 [3, H, W]."""
    levels = np.clip((image.transpose(1, 2, 0) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    soft = Image.fromarray(levels).filter(ImageFilter.GaussianBlur(image.shape[2] / 20))
    return (np.asarray(soft, dtype=np.float32) / 127.5 - 1).transpose(2, 0, 1)
