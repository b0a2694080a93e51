"""Where a derivative does not exist: at ties, on bounds, at 0. There the pullback is PyTorch's own subgradient.

The pictures of these tests lie there on purpose. What counts is torch.autograd of the op itself, in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_all, check_ordinary, compile_pullback, numbers
from helpers.small_networks import images, small
from torch import Tensor, nn

import sptrace

Function = Callable[[Tensor], Tensor]

EDGES = torch.tensor([-6.0, -3.0, -1.0, -0.5, 0.0, 0.0, 0.5, 1.0, 1.0, 3.0, 6.0, 7.0]).double()


def edges() -> Tensor:
    """Bounds and ties: [3, 2, 3, 4]; in the second picture all numbers are equal, the third is black."""
    row = torch.cat([EDGES, EDGES.flip(0)]).reshape(1, 2, 3, 4)
    return torch.cat([row, torch.ones_like(row), torch.zeros_like(row)])


def dead() -> Tensor:
    """A picture with a black channel, one with constant channels, a black one, and one with bars: [4, 2, 3, 4]."""
    image = numbers(4, 2, 3, 4, seed=1).double()
    image[0, 1], image[1], image[2], image[3, :, :, :2] = 0.0, 0.5, 0.0, 0.0
    return image


def bounds(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(value) for value in values)


HARD: dict[str, list[Function]] = {
    "steps at 0": [
        F.relu,
        F.leaky_relu,
        lambda x: F.leaky_relu(x, -0.5),
        F.elu,
        F.selu,
        lambda x: F.celu(x, 0.5),
        torch.abs,
    ],
    "clamps": [
        F.relu6,
        F.hardtanh,
        lambda x: F.hardtanh(x, 0.5, 3.0),
        lambda x: x.clamp(-1, 1),
        lambda x: x.clamp(min=0),
        lambda x: x.clamp(min=1),
        lambda x: x.clamp(max=0.5),
        lambda x: x.clamp(3, -1),
    ],
    "clamps by tensors": [
        lambda x: x.clamp(*bounds(-1.0, 1.0)),
        lambda x: x.clamp(min=torch.tensor(0.0)),
        lambda x: x.clamp(min=torch.tensor([0.0, 1.0, 3.0, -3.0])),
        lambda x: x.clamp(max=torch.tensor(1.0)),
        lambda x: x.clamp(x.flip(1), x.flip(2)),
        lambda x: x.clamp(*bounds(0.5, 0.5)),
        lambda x: torch.clamp(x, *bounds(float("-inf"), 1.0)),
    ],
    "other spellings": [
        lambda x: x.min(1)[0],
        lambda x: x.amin((2, 3)),
        lambda x: torch.aminmax(x, dim=1)[0] + torch.aminmax(x, dim=1).max,
        lambda x: torch.max(x, x.flip(1)),
        lambda x: torch.min(x, x.flip(3)),
        lambda x: torch.fmax(x, x.flip(1)),
        lambda x: torch.fmin(x, x.flip(1).abs()),
        lambda x: torch.linalg.vector_norm(x, float("inf"), dim=1),
    ],
    "shrinks": [
        lambda x: F.threshold(x, 0.5, 3.0),
        lambda x: F.threshold(x, 0.0, 0.0),
        F.hardshrink,
        F.softshrink,
        lambda x: torch.logit(x / 8 + 0.25, 0.125),
        lambda x: x.prod(1),
        lambda x: x.prod(-1),
        torch.frac,
        lambda x: torch.fmod(x, 0.5),
        torch.sinc,
        lambda x: x * x.sign() + x.sgn() * x.flip(1),
    ],
    "hardswish and softplus": [F.hardswish, lambda x: F.softplus(x, 1, 1), lambda x: F.softplus(x, 2, 6)],
    "maxima": [
        lambda x: x.amax((2, 3)),
        lambda x: x.amax(1),
        lambda x: x.max(1)[0],
        lambda x: x.max(-1, keepdim=True)[0],
        lambda x: x.max(2).values,
        lambda x: torch.maximum(x, x.flip(1)),
        lambda x: torch.minimum(x, x.flip(2).square()),
        lambda x: torch.maximum(x, torch.tensor(0.0)),
    ],
    "max pools": [
        lambda x: F.max_pool2d(x, 2, 1),
        lambda x: F.max_pool2d(x, 3, 1, 1),
        lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
        lambda x: F.max_pool2d(x, 2, 1, 0, 2),
    ],
    "norms of order 1": [lambda x: x.norm(1, dim=1), lambda x: x.norm(p=1, dim=(2, 3))],
    "selections": [
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: torch.where(x >= x.flip(1), x.square(), 0.0),
        lambda x: x * (x > 0),
        lambda x: (x + x.abs()) / 2,
        lambda x: x.masked_fill(x < 0, 0.0),
    ],
}


@pytest.mark.parametrize("group", HARD)
def test_ties_and_bounds(group: str) -> None:
    check_all(edges(), *HARD[group])


def test_hardsigmoid() -> None:
    """Alone, for autograd's 1 / 6 has only the digits of float32."""
    leaf = edges().float().requires_grad_()
    (wanted,) = torch.autograd.grad(F.hardsigmoid(leaf).sum(), leaf)
    attribution, _ = compile_pullback(Op(F.hardsigmoid), edges(), "hard")(leaf.detach(), torch.ones(3, 24))
    assert torch.equal(attribution, wanted)


ROOTS: dict[str, list[Function]] = {
    "norms and deviations": [
        lambda x: x.norm(dim=(2, 3)),
        lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True) * x,
        lambda x: x.std((2, 3)),
        lambda x: x.std(1, unbiased=False),
        lambda x: x.var((1, 2, 3), keepdim=True) * x,
        lambda x: (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 0.5),
    ],
    "global response normalisation": [
        lambda x: x * (g := x.norm(dim=(2, 3), keepdim=True)) / (g.mean(1, True) + 0.1)
    ],
    "roots behind closed gates": [
        lambda x: F.relu(x).sqrt(),
        lambda x: x.clamp(min=0).sqrt(),
        lambda x: F.relu(x) ** (1 / 3),
        lambda x: torch.maximum(x, torch.tensor(-1.0)).clamp(min=0) ** 0.5,
        lambda x: F.relu6(x).sqrt(),
        lambda x: F.hardtanh(x, 0.0, 4.0).sqrt(),
    ],
    "logarithms behind closed gates": [
        lambda x: torch.where(x > 0, x, 1.0).log(),
        lambda x: torch.where(x > 0.1, x, 1.0).reciprocal(),
        lambda x: 1 / torch.where(x > 0.1, x, 1.0),
    ],
    "a pool of squares": [
        lambda x: F.relu(F.avg_pool2d(x * x, 3, 1, 1)).sqrt(),
        lambda x: F.avg_pool2d(F.relu(x), (3, 2)).clamp(min=0).sqrt(),
    ],
    "powers of tensors": [
        lambda x: x ** torch.tensor([0.0, 1.0, 2.0, 3.0]),
        lambda x: F.relu(x) ** torch.tensor(1.5),
        lambda x: x.clamp(min=0.125).pow(torch.ones(1) * 4).mean((2, 3)).pow(1.0 / (torch.ones(1) * 4)),
        lambda x: torch.tensor([0.0, 1.0, 2.0, 3.0]) ** x.abs(),
        lambda x: 0.0 ** x.abs(),
        lambda x: 2.0**x,
        torch.expm1,
        lambda x: x.abs().log1p(),
        lambda x: torch.xlogy(x, x * x + 0.5),
        lambda x: torch.xlogy(x, torch.tensor(0.5)),
    ],
    "powers": [lambda x: x**0, lambda x: x**1, lambda x: x**2, lambda x: x**3, lambda x: x**1.0],
    "softmax": [
        lambda x: x.flatten(1).masked_fill(torch.arange(24) % 5 == 0, float("-inf")).softmax(1),
        lambda x: F.log_softmax(x * 40, 1),
    ],
}


@pytest.mark.parametrize("group", ROOTS)
def test_where_everything_is_the_same(group: str) -> None:
    check_all(dead(), *ROOTS[group])


def test_normalisation_of_nothing() -> None:
    """Of a black picture the cotangent is divided by eps, 1e12 times what it is elsewhere."""
    check_ordinary(Op(lambda x: F.normalize(x, dim=1)), image=dead()[:2, :, :, :1] + 1)
    check_ordinary(Op(lambda x: F.normalize(x.flatten(1), dim=1)), image=dead()[2:3])


@pytest.mark.parametrize("softening", ["hard", "relative"])
def test_black_and_letterboxed_pictures(softening: str, tmp_path: Path) -> None:
    """A network with norms of channels, of features, and pools of squares; nothing of it is a gate."""

    def body(self: Any, x: Tensor) -> Tensor:
        y = self.stem(x)
        length = y.norm(dim=(2, 3), keepdim=True)
        y = y * (length / (length.mean(1, keepdim=True) + 1e-6)) + y
        parts = [F.lp_pool2d(y, 2, 2), y.std((2, 3)), y.norm(dim=3), F.normalize(y, dim=1, eps=0.1)]
        return self.head(torch.cat([part.flatten(1) for part in parts], 1).tanh())

    head = nn.Linear(4 * (16 + 1 + 8 + 64), 5)
    network = small(body, stem=nn.Conv2d(3, 4, 3, padding=1, bias=False), head=head)
    sptrace.compile(network, images(1, 8), softening=softening).save(tmp_path / "network.onnx")
    pictures = images(3, 8, seed=5)
    pictures[0], pictures[1, :, :3], pictures[2, :, :, 4:] = 0.0, 0.0, 0.25
    result = sptrace.load(tmp_path / "network.onnx").explain(pictures.numpy(), [0, 1, 2])
    leaf = pictures.double().requires_grad_()
    logits = copy.deepcopy(network).double()(leaf)
    (wanted,) = torch.autograd.grad(logits[range(3), range(3)].sum(), leaf)
    for given, right in zip(torch.from_numpy(result.attribution), wanted, strict=True):
        assert (given - right).abs().max() <= 2e-5 * right.abs().max()
