"""Maxima over windows of volumes, and of several sizes, against loops over their windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_jacobians, numbers
from torch import Tensor

from sptrace.artifact.softening import Softening

Cells = list[list[int | None]]
"""For each window along a dimension its cells; None for padding."""


def strided(size: int, kernel: int, stride: int, padding: int, count: int) -> Cells:
    places = [[stride * index + cell - padding for cell in range(kernel)] for index in range(count)]
    return [[place if 0 <= place < size else None for place in window] for window in places]


def adaptive(size: int, count: int) -> Cells:
    return [
        list(range(math.floor(index * size / count), math.ceil((index + 1) * size / count)))
        for index in range(count)
    ]


def jacobian(x: Tensor, windows: Sequence[Cells], tau: float | None) -> Tensor:
    """[outputs, numbers of x] of one channel x; without a temperature all goes to the first maximum."""
    rows = []
    for window in product(*windows):
        cells = list(product(*window))
        found = [None if None in cell else float(x[cell]) for cell in cells]
        if tau is None:
            largest = max(value for value in found if value is not None)
            shares = [float(index == found.index(largest)) for index in range(len(found))]
        else:
            powers = [math.exp((value or 0.0) / tau) for value in found]
            shares = [power / sum(powers) for power in powers]
        row = torch.zeros_like(x)
        for cell, share in zip(cells, shares, strict=True):
            if None not in cell:
                row[cell] += share
        rows.append(row.flatten())
    return torch.stack(rows)


POOLS: dict[str, tuple[Callable[[Tensor], Tensor], list[Cells]]] = {
    "volume": (
        lambda x: F.max_pool3d(x.unsqueeze(1), (3, 2, 2), (2, 1, 2), (1, 1, 0)),
        [strided(4, 3, 2, 1, 2), strided(3, 2, 1, 1, 4), strided(5, 2, 2, 0, 2)],
    ),
    "volume, several sizes": (
        lambda x: F.adaptive_max_pool3d(x.unsqueeze(1), (3, 2, 3)),
        [adaptive(4, 3), adaptive(3, 2), adaptive(5, 3)],
    ),
}


def maps(ties: bool) -> Tensor:
    """[2, 4, 3, 5]; with `ties` of few different numbers."""
    x = numbers(2, 4, 3, 5).double()
    return x.round() if ties else x


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("tau", [None, 0.3])
@pytest.mark.parametrize("name", POOLS)
def test_windows(name: str, tau: float | None, ties: bool) -> None:
    pool, windows = POOLS[name]
    images = maps(ties)
    wanted = torch.stack([jacobian(image, windows, tau) for image in images])
    softening = Softening("hard") if tau is None else Softening("paper", tau={"max_pool": tau})
    check_jacobians(Op(pool), images, wanted, softening=softening)
