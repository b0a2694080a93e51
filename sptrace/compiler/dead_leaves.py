"""Pictures that relative temperatures are measured on where nobody gives photographs."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sptrace.artifact.description import Preprocessing

COUNT = 4
DISCS = 2000
SMALLEST, LARGEST = 1 / 64, 1 / 2
"""Radii, in sides of the picture; their density falls with the third power, which makes the picture scale-free."""


@lru_cache(maxsize=1)
def dead_leaves(preprocessing: Preprocessing) -> Tensor:
    """Discs of all sizes and colours, each shaded, one over the other: the same everywhere, without a data set.

    Such pictures have the statistics of natural ones: edges, flat regions and contrast at every scale (Lee, Mumford and
    Huang, Occlusion models for natural images, IJCV 41, 2001). What the layers of a network see in them is within some
    15 % as large as in photographs, but for the last ones, whose units wait for objects.

    Arguments:
        preprocessing: gives size and range.

    Returns:
        float32 [4, 3, H, W] in the input's range.
    """
    # Its numbers are the same in all versions of NumPy, which default_rng does not promise.
    random = np.random.RandomState(0)
    low, high = preprocessing.input_range
    pictures = torch.from_numpy(np.stack([_picture(random, *preprocessing.size) for _ in range(COUNT)]))
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return low + (high - low) * soft


def _picture(random: np.random.RandomState, height: int, width: int) -> NDArray[np.float32]:
    """Float32 [3, H, W] in [0, 1]."""
    picture = np.full((3, height, width), 0.5)
    for y, x, radius, colour, slope in _leaves(random, height, width):
        top, left = max(0, int(y - radius)), max(0, int(x - radius))
        part = picture[:, top : int(y + radius) + 2, left : int(x + radius) + 2]
        rows, columns = np.ogrid[top : top + part.shape[1], left : left + part.shape[2]]
        inside = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        shade = slope[0] * (rows - y) + slope[1] * (columns - x)
        part[:, inside] = colour[:, None] + shade[inside]
    return picture.clip(0, 1).astype(np.float32)


def _leaves(
    random: np.random.RandomState, height: int, width: int
) -> Iterator[tuple[float, float, float, NDArray[np.float64], NDArray[np.float64]]]:
    """Centre, radius, colour and shading of the discs, the lowest first."""
    side = max(height, width)
    for _ in range(DISCS):
        share = random.uniform()
        radius = side / np.sqrt(share / LARGEST**2 + (1 - share) / SMALLEST**2)
        y, x = (random.uniform(-radius, length + radius) for length in (height, width))
        colour = random.uniform(0.02, 0.88) + random.uniform(-0.14, 0.14, 3)
        yield y, x, radius, colour, random.uniform(-0.4, 0.4, 2) / side
