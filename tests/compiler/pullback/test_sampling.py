"""Reading at fixed places, windows and resizing against their matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import ROUNDED, Op, check_linear, compile_pullback, numbers
from torch import Tensor

from sptrace.errors import UnsupportedError

SHUFFLED = torch.tensor([3, 0, 4, 1, 2])
SOME = torch.tensor([[1, 1, 4], [0, 1, -1]])


@pytest.mark.parametrize(
    "reading",
    [
        pytest.param(lambda x, i, j: x[..., i], id="a permutation"),
        pytest.param(lambda x, i, j: x[..., i][:, :, :3], id="a permutation, then a slice"),
        pytest.param(lambda x, i, j: x[..., j], id="places in two dimensions, some twice"),
        pytest.param(lambda x, i, j: x[:, :, j], id="in the middle"),
        pytest.param(lambda x, i, j: x[:, i[:3] % 2], id="channels"),
        pytest.param(lambda x, i, j: x[:, :, i, i.flip(0)], id="in two dimensions at once"),
        pytest.param(lambda x, i, j: x.index_select(2, i), id="index_select"),
        pytest.param(lambda x, i, j: x.unfold(2, 3, 2), id="windows of rows"),
        pytest.param(lambda x, i, j: x.unfold(3, 2, 1).unfold(2, 3, 2), id="windows of rows and columns"),
    ],
)
def test_reading(reading: Callable[..., Tensor]) -> None:
    check_linear(Op(reading, SHUFFLED, SOME), 2, 5, 5)


def test_places_computed_from_the_image_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="reads at places computed from the image"):
        compile_pullback(Op(lambda x: x[:, :, x.argmax(3)[0, 0] % 4]), numbers(2, 3, 4, 5))


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": (3, 2), "padding": 1, "stride": 2},
        {"kernel_size": 2, "dilation": (2, 1), "padding": (1, 0), "stride": (1, 3)},
    ],
    ids=str,
)
def test_windows(options: dict[str, Any]) -> None:
    check_linear(Op(lambda x: F.unfold(x, **options)), 2, 6, 5)
    check_linear(Op(lambda x: F.fold(F.unfold(x, **options) * 2, (6, 5), **options)), 2, 6, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"size": (8, 5), "mode": "nearest"},
        {"size": (7, 3), "mode": "nearest"},
        {"size": (3, 9), "mode": "nearest-exact"},
        {"scale_factor": 2, "mode": "nearest"},
        {"size": (9, 7), "mode": "bilinear"},
        {"scale_factor": 1.7, "mode": "bilinear"},
        {"size": (2, 5), "mode": "bilinear", "antialias": True},
        {"size": (9, 7), "mode": "bilinear", "align_corners": True},
        {"scale_factor": 2, "mode": "bicubic"},
        {"size": (3, 9), "mode": "bicubic", "antialias": True},
    ],
    ids=str,
)
def test_resizing(options: dict[str, Any]) -> None:
    check_linear(Op(lambda x: F.interpolate(x, **options)), 2, 4, 5, tolerance=ROUNDED)


@pytest.mark.parametrize(
    "copies",
    [
        pytest.param(lambda x: x.repeat(1, 2, 1, 3), id="repeat"),
        pytest.param(
            lambda x: x.flatten(1).repeat(2, 1, 1).transpose(0, 1), id="repeat with a new dimension"
        ),
        pytest.param(lambda x: x.tile(2, 1), id="tile"),
        pytest.param(lambda x: x.repeat_interleave(3, 1), id="repeat_interleave"),
        pytest.param(lambda x: torch.roll(x, (1, -2), (2, 3)), id="roll"),
        pytest.param(lambda x: torch.roll(x, -4, 3), id="roll by all"),
        pytest.param(lambda x: F.pixel_shuffle(x, 2), id="pixel shuffle"),
        pytest.param(lambda x: F.pixel_unshuffle(x, 2), id="pixel unshuffle"),
        pytest.param(lambda x: x.chunk(3, 1)[1] + x.split([1, 2, 1], 1)[2], id="chunk and split"),
        pytest.param(lambda x: sum(x.unbind(2)[1:]), id="unbind"),
        pytest.param(lambda x: torch.cat([x, torch.zeros_like(x), x.new_ones(x.shape)], 1), id="constants"),
        pytest.param(lambda x: x.masked_fill(torch.ones(4, 4).tril().bool(), 3.0), id="masked_fill"),
    ],
)
def test_copies(copies: Callable[[Tensor], Tensor]) -> None:
    check_linear(Op(copies), 4, 4, 4)


def test_copies_of_a_constant_for_each_picture() -> None:
    def body(x: Tensor, token: Tensor) -> Tensor:
        several = token.expand(x.shape[0], -1, -1) + torch.zeros(x.shape[0], 1, 4)
        return torch.cat([several, token.repeat(x.shape[0], 1, 1), x.flatten(2)], 1)

    check_linear(Op(body, numbers(1, 1, 4)), 3, 2, 2)


@pytest.mark.parametrize(
    ("equation", "sizes"),
    [
        ("bchw,hk->bckw", (3, 6)),
        ("bchw,wkc->bhk", (4, 2, 2)),
        ("...hw,kw->...hk", (5, 4)),
        ("bchw,cd->bdhw", (2, 3)),
        ("bchw,c->bhw", (2,)),
        ("bchw,k->bkcwh", (2,)),
    ],
)
def test_einsum_with_a_constant(equation: str, sizes: tuple[int, ...]) -> None:
    check_linear(Op(lambda x, w: torch.einsum(equation, x, w), numbers(*sizes)), 2, 3, 4)
