"""Sizes that depend on the batch are no numbers, and N is not k N: whatever sizes a network has that agree."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.rule_checks import check_ordinary, randomized
from helpers.small_networks import images, small
from torch import Tensor, nn

import sptrace
from sptrace.compiler.graph.sizes import BATCH, BatchSize, joint, literal, size_of
from sptrace.errors import UnsupportedError


def test_a_size_is_a_number_or_a_multiple_of_the_batch() -> None:
    assert size_of((6, 6)) == 6
    assert size_of((2, 3)) == BATCH
    assert size_of((12, 18)) == BatchSize(6) == BATCH * 6 != BATCH
    assert [str(size) for size in (BATCH, BatchSize(6))] == ["N", "6 N"]


@pytest.mark.parametrize("given", [(4, 9), (1, 2), (3, 4), (0, 1), (3, 2)], ids=str)
def test_nothing_else_is(given: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedError, match="no multiple of the number of pictures"):
        size_of(given)


def test_sizes_in_one() -> None:
    assert joint([2, 3]) == 6
    assert joint([2, BatchSize(5), 3]) == BatchSize(30)
    assert literal([BatchSize(5), 3]) == [-1, 3]
    for function in (joint, literal):
        with pytest.raises(UnsupportedError, match="combined with each other"):
            function([BATCH, BATCH])


class Rearranged(nn.Module):
    """A chain of rearrangements, attention and layers, drawn with `seed`; no picture sees another.

    Each step permutes the four axes, and joins neighbours to dimensions, so that pictures are numbered anywhere: in a
    dimension of their own, or before, behind and between other axes.

    Arguments:
        seed: what draws sizes and steps.
        sizes: what sizes are drawn from; the fewer there are, the more agree.
    """

    def __init__(self, seed: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.extent = {axis: draw.choice(sizes) for axis in "chw"}
        self.dimensions = [["n", "c", "h", "w"]]  # each a string of axes, the outermost first
        self.layers = nn.ModuleList()
        for _ in range(draw.randint(2, 5)):
            order = [axis for axes in self.dimensions[-1] for axis in axes]
            draw.shuffle(order)
            cuts = sorted(draw.sample(range(1, 4), draw.randint(1, 3)))
            if draw.random() < 0.6:
                # Where most mistakes are made: each picture's rows one after the other.
                order, cuts = ["n", *(axis for axis in order if axis != "n")], [2, 3]
            self.dimensions.append(
                ["".join(order[start:end]) for start, end in zip([0, *cuts], [*cuts, 4], strict=True)]
            )
            self.layers.append(self._drawn(draw, self.dimensions[-1]))

    def _drawn(self, draw: random.Random, dimensions: list[str]) -> nn.Module:
        """A layer that mixes no pictures."""
        possible: list[nn.Module] = [nn.Tanh()]
        if "n" not in dimensions[-1]:
            possible.append(nn.Linear(*self._sizes([dimensions[-1]] * 2, 1)))
            if "n" not in dimensions[-2]:
                possible += [Attention(), ChannelAttention()]
        return draw.choice(possible)

    def _sizes(self, dimensions: Iterable[str], count: int) -> list[int]:
        extent = {**self.extent, "n": count}
        return [math.prod(extent[axis] for axis in axes) for axes in dimensions]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] to [N, C H W]."""
        count, before = x.shape[0], "".join(self.dimensions[0])
        for dimensions, layer in zip(self.dimensions[1:], self.layers, strict=True):
            order = "".join(dimensions)
            x = x.reshape(self._sizes(before, count)).permute([before.index(axis) for axis in order])
            x, before = layer(x.reshape(self._sizes(dimensions, count))), order
        return x.reshape(self._sizes(before, count)).movedim(before.index("n"), 0).flatten(1)


class Attention(nn.Module):
    """Tokens that look at each other, of any number of dimensions before the last two."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., T, C] to [..., T, C]."""
        return (x @ x.transpose(-1, -2)).softmax(-1) @ x


class ChannelAttention(Attention):
    """Channels that look at each other."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., T, C] to [..., T, C]."""
        return super().forward(x.transpose(-1, -2)).transpose(-1, -2)


@pytest.mark.parametrize("sizes", [(2,), (3,), (2, 3), (1, 2, 4)], ids=str)
@pytest.mark.parametrize("seed", range(8))
def test_chains_of_rearrangements(seed: int, sizes: tuple[int, ...]) -> None:
    network = randomized(Rearranged(seed, sizes)).eval()
    check_ordinary(network, *network.extent.values())


def rows_attend(self: Any, x: Tensor) -> Tensor:
    """Attention within each row of a map, all rows of all pictures in one dimension."""
    y = self.conv(x).permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    rows = y.reshape(n * h, w, c)
    rows = (rows @ rows.transpose(1, 2)).softmax(-1) @ rows
    return self.head(torch.tanh(rows).reshape(n, h * w, c).mean(1))


def heads_attend(self: Any, x: Tensor) -> Tensor:
    """Attention as TrOCR's: the heads of all pictures in one dimension, as many as there are tokens."""
    tokens = self.patches(x).flatten(2).transpose(1, 2)
    n, count, width = tokens.shape
    heads, each = 2, width // 2
    q, k, v = (
        layer(tokens).view(n, count, heads, each).transpose(1, 2).reshape(n * heads, count, each)
        for layer in (self.q, self.k, self.v)
    )
    mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
    mixed = mixed.view(n, heads, count, each).transpose(1, 2).reshape(n, count, width)
    return self.head(self.out(mixed).mean(1))


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(small(rows_attend, conv=nn.Conv2d(3, 8, 1), head=nn.Linear(8, 4)), id="rows"),
        pytest.param(
            small(
                heads_attend,
                patches=nn.Conv2d(3, 4, (3, 6), (3, 6)),
                **{name: nn.Linear(4, 4) for name in ("q", "k", "v", "out", "head")},
            ),
            id="two heads, two tokens",
        ),
    ],
)
def test_as_autograd_of_the_original(network: nn.Module, tmp_path: Path) -> None:
    """Compiled, and run on pictures and batch sizes that the compiler has not seen."""
    sptrace.compile(network, images(2, 6), softening="hard").save(tmp_path / "program.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "program.onnx")
    twin = copy.deepcopy(network).double()
    for count in (1, 2, 3, 5):
        pictures = images(count, 6, seed=count)
        leaf = pictures.double().requires_grad_()
        logits = twin(leaf)
        (gradient,) = torch.autograd.grad(logits.amax(1).sum(), leaf)
        feeds = {"image": pictures.numpy(), "target": np.full(count, -1)}
        explained = session.run(["attribution", "logits"], feeds)
        for given, wanted in zip(explained, (gradient, logits), strict=True):
            np.testing.assert_allclose(given, wanted.detach(), atol=1e-5 * wanted.abs().max().item())
