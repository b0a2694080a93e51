"""Max pooling against loops over its windows (arXiv 2507.22832), average pooling against its matrix."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import (
    ROUNDED,
    Op,
    SideBySide,
    check_jacobians,
    check_linear,
    check_ordinary,
    compile_pullback,
    numbers,
)
from torch import Tensor, nn

from sptrace.artifact.softening import Softening
from sptrace.errors import UnsupportedError

Share = Callable[[list[float | None]], list[float]]
"""From the cells of a window, None for padding, to the part of the cotangent that each gets."""

HARD = Softening("hard")


def softmax(tau: float) -> Share:
    """exp(cell / tau) over the sum of all of them; padding counts as 0."""

    def share(cells: list[float | None]) -> list[float]:
        values = [0.0 if cell is None else cell for cell in cells]
        powers = [math.exp((value - max(values)) / tau) for value in values]
        return [power / sum(powers) for power in powers]

    return share


def first_maximum(cells: list[float | None]) -> list[float]:
    """All to the largest; of several the first, row by row, as PyTorch has it."""
    largest = max(cell for cell in cells if cell is not None)
    return [float(index == cells.index(largest)) for index in range(len(cells))]


def pool_jacobian(
    picture: np.ndarray, pool: nn.MaxPool2d, outputs: tuple[int, int], share: Share
) -> np.ndarray:
    """[C outputs, C H W] of one picture [C, H, W]: every window hands shares to its cells, padding drops them."""
    channels, height, width = picture.shape
    jacobian = np.zeros((channels, *outputs, channels, height, width))
    for channel, row, column in product(range(channels), *map(range, outputs)):
        places = list(window_cells(pool, row, column))
        inside = [0 <= y < height and 0 <= x < width for y, x in places]
        cells = [
            float(picture[channel, y, x]) if known else None
            for (y, x), known in zip(places, inside, strict=True)
        ]
        for (y, x), known, part in zip(places, inside, share(cells), strict=True):
            if known:
                jacobian[channel, row, column, channel, y, x] += part
    return jacobian.reshape(channels * math.prod(outputs), picture.size)


def window_cells(pool: nn.MaxPool2d, row: int, column: int) -> Iterator[tuple[int, int]]:
    """Where the cells of one window lie, row by row."""
    kernel, stride, padding, dilation = (
        (option, option) if isinstance(option, int) else option
        for option in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    for y, x in product(range(kernel[0]), range(kernel[1])):
        yield (
            row * stride[0] - padding[0] + y * dilation[0],
            column * stride[1] - padding[1] + x * dilation[1],
        )


def check_max_pool(pool: nn.MaxPool2d, image: Tensor, share: Share, softening: Softening) -> None:
    _, _, *outputs = pool(image).shape
    jacobians = np.stack([pool_jacobian(picture, pool, tuple(outputs), share) for picture in image.numpy()])
    check_jacobians(Op(pool), image, torch.from_numpy(jacobians), softening=softening)


POOLS = [
    pytest.param(nn.MaxPool2d(2), id="2x2"),
    pytest.param(nn.MaxPool2d(3, 2, 1), id="ResNet's"),
    pytest.param(nn.MaxPool2d(3, 1, 1), id="stride 1"),
    pytest.param(nn.MaxPool2d((2, 3), (1, 2)), id="rectangular"),
    pytest.param(nn.MaxPool2d((4, 1), (3, 1), (2, 0)), id="one column"),
    pytest.param(nn.MaxPool2d(2, 3), id="stride beyond the kernel"),
    pytest.param(nn.MaxPool2d(2, 3, 1), id="stride beyond the kernel, padding"),
    pytest.param(nn.MaxPool2d(1, 2), id="one cell"),
    pytest.param(nn.MaxPool2d(2, 2, 1, dilation=2), id="dilation"),
    pytest.param(nn.MaxPool2d((2, 3), (1, 3), (1, 1), (3, 1)), id="dilation per dimension"),
    pytest.param(nn.MaxPool2d(3, 2, ceil_mode=True), id="ceil_mode"),
    pytest.param(nn.MaxPool2d(2, 2, 1, ceil_mode=True), id="ceil_mode, padding"),
    pytest.param(nn.MaxPool2d(3, 3, (0, 1), ceil_mode=True), id="ceil_mode, padding in one dimension"),
    pytest.param(nn.MaxPool2d(2, 3, ceil_mode=True), id="ceil_mode, stride beyond the kernel"),
    pytest.param(nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True), id="ceil_mode, dilation"),
    pytest.param(nn.MaxPool2d((7, 6)), id="the whole picture"),
]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(
    ("softening", "share"),
    [
        pytest.param(Softening("paper"), softmax(0.3), id="softmax"),
        pytest.param(HARD, first_maximum, id="hard"),
    ],
)
def test_max_pool(pool: nn.MaxPool2d, softening: Softening, share: Share) -> None:
    check_max_pool(pool, numbers(2, 2, 7, 6).double(), share, softening)


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (6, 7), (8, 9)], ids=str)
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_max_pool_of_odd_and_even_sizes(ceil_mode: bool, size: tuple[int, int]) -> None:
    check_max_pool(
        nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode),
        numbers(2, 1, *size).double(),
        softmax(0.3),
        Softening("paper"),
    )


@pytest.mark.parametrize("tau", [0.05, 2.0])
def test_temperature_of_a_max_pool(tau: float) -> None:
    check_max_pool(
        nn.MaxPool2d(3, 2, 1),
        numbers(2, 1, 5, 6).double(),
        softmax(tau),
        Softening("paper", tau={"max_pool": tau}),
    )


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("offset", [-2.0, -300.0, 300.0])
def test_max_pool_far_from_zero(offset: float, padding: int) -> None:
    """Where all numbers are negative padding takes the softmax but never the maximum; nothing overflows."""
    image = (numbers(2, 1, 5, 6) + offset).double()
    check_max_pool(nn.MaxPool2d(3, 2, padding), image, softmax(0.3), Softening("paper"))
    check_max_pool(nn.MaxPool2d(3, 2, padding), image, first_maximum, HARD)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 1), nn.MaxPool2d(3, 3, ceil_mode=True)]
)
def test_max_pool_of_equal_cells(pool: nn.MaxPool2d) -> None:
    image = numbers(3, 1, 7, 6).sign().double()
    image[0] = 0.0
    check_max_pool(pool, image, softmax(0.3), Softening("paper"))
    check_max_pool(pool, image, first_maximum, HARD)
    check_ordinary(Op(pool), image=image)


def test_max_pool_of_maps_without_channels() -> None:
    image = numbers(2, 1, 5, 6).double()
    jacobians = [pool_jacobian(picture, nn.MaxPool2d(2), (2, 3), softmax(0.3)) for picture in image.numpy()]
    check_jacobians(
        Op(lambda x: F.max_pool2d(x[:, 0], 2)),
        image,
        torch.from_numpy(np.stack(jacobians)),
        softening=Softening("paper"),
    )


# --- Average pooling ---


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("size", [(7, 8), (6, 5), (4, 9)], ids=str)
def test_average_pool(size: tuple[int, int], ceil_mode: bool, count_include_pad: bool) -> None:
    shapes: list[tuple[Any, Any, Any]] = [
        (2, 2, 0),
        (3, 1, 1),
        (3, 2, 0),
        (3, 2, 1),
        (2, 3, 1),
        (1, 1, 0),
        (1, 2, 0),
        (4, 3, 2),
        ((2, 3), (1, 2), (1, 0)),
        ((4, 1), (3, 1), (2, 0)),
        ((1, 3), 1, (0, 1)),
    ]
    pools = [nn.AvgPool2d(*shape, ceil_mode, count_include_pad) for shape in shapes]
    check_linear(Op(SideBySide(*pools)), 1, *size, tolerance=ROUNDED)


def test_average_pool_without_padding_is_exact() -> None:
    check_linear(Op(SideBySide(nn.AvgPool2d(2), nn.AvgPool2d(3, 1), nn.AvgPool2d((2, 3), (3, 1)))), 2, 6, 7)


@pytest.mark.parametrize("options", [{}, {"padding": 1}, {"padding": 1, "ceil_mode": True}], ids=str)
def test_average_pool_with_a_divisor(options: dict[str, Any]) -> None:
    pool = nn.AvgPool2d((2, 3), (2, 1), divisor_override=5, **options)
    check_linear(Op(pool), 2, 5, 6, tolerance=ROUNDED)


@pytest.mark.parametrize(
    "size", [1, (6, 8), (3, 4), (6, 1), (2, 8), (4, 5), (5, 3), (1, 3), (None, 2), (12, 16), (9, 3)], ids=str
)
def test_adaptive_average_pool(size: int | tuple[int | None, int]) -> None:
    check_linear(Op(nn.AdaptiveAvgPool2d(size)), 2, 6, 8, tolerance=ROUNDED)


@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(2), nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.AdaptiveAvgPool2d((2, 4))]
)
def test_average_pool_of_maps_without_channels(pool: nn.Module) -> None:
    check_linear(Op(lambda x: pool(x[:, 0])), 2, 5, 6, tolerance=ROUNDED)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(1), nn.AvgPool2d(1), nn.AdaptiveAvgPool2d(1)], ids=str)
def test_pooling_over_the_batch_is_refused(pool: nn.Module) -> None:
    op = Op(lambda x: x.flatten(1) + pool(x.flatten(1)[None, None].expand(1, 3, -1, -1)).mean())
    with pytest.raises(
        UnsupportedError, match=r"pictures of a batch are combined with each other \(.*py:\d+"
    ):
        compile_pullback(op, torch.zeros(2, 3, 4, 5))
