"""Gates as networks write them out of simpler calls, and the gate that each of them is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def _overwritten(in_place: Callable[[Tensor], object]) -> Map:
    def function(x: Tensor) -> Tensor:
        x = x * 1.0
        in_place(x)
        return x

    return function


def _put(x: Tensor) -> None:
    x[x < 0] = 0


def _times(x: Tensor) -> None:
    x[x < 0] *= 0.1


def _rewritten(x: Tensor) -> None:
    x[x < 0] = 0.1 * x[x < 0]


def _raised(x: Tensor) -> None:
    x[x < 0] += 1


RELUS: dict[str, Map] = {
    "maximum(x, 0)": lambda x: torch.maximum(x, x.new_tensor(0.0)),
    "maximum(0, x)": lambda x: torch.maximum(torch.zeros_like(x), x),
    "max(x, 0)": lambda x: torch.max(x, torch.zeros_like(x)),
    "x.max(0)": lambda x: x.max(x.new_zeros(1)),
    "fmax": lambda x: torch.fmax(x, torch.zeros_like(x)),
    "-min(-x, 0)": lambda x: -torch.min(-x, torch.zeros_like(x)),
    "where >": lambda x: torch.where(x > 0, x, 0.0),
    "where >=": lambda x: torch.where(x >= 0, x, torch.zeros_like(x)),
    "where <": lambda x: torch.where(x < 0, 0.0, x),
    "where 0 >=": lambda x: torch.where(x <= 0, torch.zeros_like(x), x),
    "x * (x > 0)": lambda x: x * (x > 0),
    "float mask": lambda x: (x > 0).float() * x,
    "mask.to": lambda x: x * (x >= 0).to(x.dtype),
    "mask.type_as": lambda x: x * x.gt(0).type_as(x),
    "detached mask": lambda x: x * (x > 0).to(x.dtype).detach(),
    "not mask": lambda x: x * ~(x < 0),
    "1 - mask": lambda x: x * (1 - (x < 0).to(x.dtype)),
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "masked_fill_": _overwritten(lambda x: x.masked_fill_(x <= 0, 0)),
    "mul_": _overwritten(lambda x: x.mul_(x > 0)),
    "x[x < 0] = 0": _overwritten(_put),
    "index_put": lambda x: x.index_put((x < 0,), x.new_tensor(0.0)),
    "(x + |x|) / 2": lambda x: (x + x.abs()) / 2,
    "0.5 (|x| + x)": lambda x: 0.5 * (torch.abs(x) + x),
    "x / 2 + |x| / 2": lambda x: 0.5 * x + 0.5 * torch.abs(x),
    "(x + sqrt(x x)) / 2": lambda x: (x + torch.sqrt(x * x)) / 2,
    "clamp(min=0)": lambda x: x.clamp(min=0),
    "clamp(0, inf)": lambda x: x.clamp(0, float("inf")),
    "clamp(tensor)": lambda x: x.clamp(min=x.new_tensor(0.0)),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "clip": lambda x: torch.clip(x, 0),
    "clamp_": _overwritten(lambda x: x.clamp_(min=0)),
    "threshold": lambda x: F.threshold(x, 0, 0),
    "x (1 + sign x) / 2": lambda x: x * (1 + torch.sign(x)) / 2,
    "x sign(x) clamped": lambda x: x * torch.sign(x).clamp(min=0),
    "(x + x sign x) / 2": lambda x: (x + x * x.sign()) / 2,
    "leaky_relu(x, 0)": lambda x: F.leaky_relu(x, 0.0),
}
"""All of them max(x, 0)."""

LEAKY_RELUS: dict[str, Map] = {
    "where >": lambda x: torch.where(x > 0, x, 0.1 * x),
    "where <": lambda x: torch.where(x < 0, x * 0.1, x),
    "max(x, 0.1 x)": lambda x: torch.max(x, 0.1 * x),
    "max(x / 10, x)": lambda x: torch.maximum(x / 10, x),
    "masks": lambda x: x * ((x > 0).to(x.dtype) + 0.1 * (x <= 0).to(x.dtype)),
    "x[x < 0] *= 0.1": _overwritten(_times),
    "x[x < 0] = 0.1 x[x < 0]": _overwritten(_rewritten),
    "0.55 x + 0.45 |x|": lambda x: 0.55 * x + 0.45 * x.abs(),
}
"""All of them max(x, 0.1 x)."""

RELU6S: dict[str, Map] = {
    "clamp(0, 6)": lambda x: x.clamp(0, 6),
    "clip": lambda x: torch.clip(x, min=0, max=6),
    "min(max(x, 0), 6)": lambda x: torch.minimum(torch.maximum(x, x.new_tensor(0.0)), x.new_tensor(6.0)),
    "max(min(x, 6), 0)": lambda x: torch.maximum(torch.minimum(x, x.new_tensor(6.0)), x.new_tensor(0.0)),
    "relu, clamp(max=6)": lambda x: F.relu(x).clamp(max=6),
    "clamp, clamp": lambda x: x.clamp(max=6).clamp(min=0),
}
"""All of them min(max(x, 0), 6)."""


def _tiles(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    return x.reshape(count, channels, height // 2, 2, width // 2, 2)


def _corners(x: Tensor) -> list[Tensor]:
    return [x[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1)]


def _exponential_below(x: Tensor) -> Tensor:
    x = x * 1.0
    x[x < 0] = torch.exp(x[x < 0]) - 1
    return x


CURVES: dict[str, tuple[Map, dict[str, Map]]] = {
    "gelu": (
        F.gelu,
        {
            "x / 2 (1 + erf)": lambda x: 0.5 * x * (1.0 + torch.erf(x / math.sqrt(2.0))),
            "x ((erf + 1) / 2)": lambda x: x * ((torch.erf(x * 0.70710678) + 1) / 2),
            "ones_like": lambda x: 0.5 * x * (torch.ones_like(x) + torch.erf(x / math.sqrt(2.0))),
            "erfc": lambda x: 0.5 * x * torch.erfc(-x / 2**0.5),
            "x / 2 + x / 2 erf": lambda x: x * 0.5 + 0.5 * x * torch.special.erf(x / 1.41421356),
        },
    ),
    "gelu tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        {
            "new": lambda x: (
                0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))
            ),
            "fast": lambda x: 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x))),
            "sigmoid": lambda x: x * torch.sigmoid(1.5957691216 * (x + 0.044715 * x**3)),
        },
    ),
    "silu": (
        F.silu,
        {
            "x / (1 + exp(-x))": lambda x: x / (1 + torch.exp(-x)),
            "x (1 / (1 + exp))": lambda x: x * (1 / (1 + (-x).exp())),
            "x (1 + tanh(x / 2)) / 2": lambda x: x * (1 + torch.tanh(x / 2)) / 2,
            "x sigmoid": lambda x: x * torch.sigmoid(x),
            "mul_": lambda x: (1.0 * x).mul_(x.sigmoid()),
        },
    ),
    "quick gelu": (
        lambda x: x * torch.sigmoid(1.702 * x),
        {
            "exp": lambda x: x / (1 + torch.exp(-1.702 * x)),
            "tensor": lambda x: x * torch.sigmoid(x.new_tensor(1.702) * x),
        },
    ),
    "hardswish": (
        F.hardswish,
        {
            "x relu6(x + 3) / 6": lambda x: x * F.relu6(x + 3) / 6,
            "x (relu6(x + 3) / 6)": lambda x: x * (F.relu6(x + 3.0) / 6.0),
            "in place": lambda x: F.relu6(x + 3, inplace=True).div_(6).mul(x),
            "clamp": lambda x: x * (x + 3).clamp(0, 6) / 6,
            "clamp(0, 1)": lambda x: x * torch.clamp(x / 6 + 0.5, 0, 1),
            "hardtanh": lambda x: x * F.hardtanh(x + 3, 0.0, 6.0) / 6.0,
            "min, relu": lambda x: x * F.relu(x + 3).clamp(max=6) * (1 / 6),
        },
    ),
    "mish": (
        F.mish,
        {
            "softplus": lambda x: x * torch.tanh(F.softplus(x)),
            "log(1 + exp)": lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))),
            "log1p": lambda x: torch.log1p(x.exp()).tanh() * x,
            "quotient": lambda x: x * (((1 + x.exp()) ** 2 - 1) / ((1 + x.exp()) ** 2 + 1)),
        },
    ),
    "softplus": (
        lambda x: F.softplus(x, 2.0),
        {
            "log": lambda x: torch.log(1 + torch.exp(2 * x)) / 2,
            "log1p": lambda x: torch.log1p(torch.exp(2 * x)) * 0.5,
        },
    ),
    "elu": (
        F.elu,
        {
            "where": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
            "expm1": lambda x: torch.where(x < 0, torch.expm1(x), x),
            "relu + min": lambda x: F.relu(x) + torch.clamp(torch.exp(x) - 1, max=0),
            "relu - relu": lambda x: F.relu(x) - F.relu(1 - torch.exp(x)),
            "exp(min)": lambda x: F.relu(x) + torch.exp(x.clamp(max=0)) - 1,
            "x[x < 0]": _exponential_below,
        },
    ),
    "elu, alpha": (
        lambda x: F.elu(x, 0.7),
        {"where": lambda x: torch.where(x > 0, x, 0.7 * (torch.exp(x) - 1))},
    ),
    "selu": (
        F.selu,
        {
            "where": lambda x: (
                1.0507009873554805 * torch.where(x >= 0, x, 1.6732632423543772 * torch.expm1(x))
            ),
        },
    ),
    "celu": (
        lambda x: F.celu(x, 2.0),
        {"max + min": lambda x: x.clamp(min=0) + (2 * (torch.exp(x / 2) - 1)).clamp(max=0)},
    ),
    "silu in the mirror": (
        lambda x: -3 * F.silu(-x),
        {"exp": lambda x: 3 * x / (1 + torch.exp(x)), "sigmoid": lambda x: 3 * x * torch.sigmoid(-x)},
    ),
}
"""Of each smooth gate PyTorch's own function, and how it is written out of others."""

MAX_POOLS: dict[str, Map] = {
    "view, amax": lambda x: _tiles(x).amax((3, 5)),
    "unfold, amax": lambda x: x.unfold(2, 2, 2).unfold(3, 2, 2).amax((-1, -2)),
    "F.unfold, max": lambda x: (
        F.unfold(x, 2, stride=2).view(x.shape[0], x.shape[1], 4, x.shape[2] // 2, x.shape[3] // 2).max(2)[0]
    ),
    "stack, amax": lambda x: torch.stack(_corners(x), 2).amax(2),
    "stack in front, max": lambda x: torch.stack(_corners(x)).max(0).values,
}
"""All of them max_pool2d(x, 2)."""


NO_GATES: dict[str, Map] = {
    "x tanh(x)": lambda x: x * torch.tanh(x),
    "x (1 + erf(x))": lambda x: x * (1 + torch.erf(x)),
    "x sigmoid(y)": lambda x: x * torch.sigmoid(x.flip(1)),
    "x sigmoid(mean)": lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "one sharpness a channel": lambda x: x / (1 + torch.exp(-x * x.new_tensor([1.0, 2.0]).reshape(2, 1, 1))),
    "sigmoid": torch.sigmoid,
    "x sigmoid(x + 1)": lambda x: x * torch.sigmoid(x + 1),
    "clamp(min=0.5)": lambda x: x.clamp(min=0.5),
    "a number below": lambda x: torch.where(x > 0, x, 2.0),
    "a threshold": lambda x: torch.where(x > 0.5, x, 0.0),
    "a threshold next to 0": lambda x: torch.where(x >= 0.001, x, 0.5 * x),
    "a mask beyond a threshold": lambda x: x * (x > 1),
    "a band": lambda x: x * ((x > 0) & (x < 2)),
    "x[x < 0] += 1": _overwritten(_raised),
    "|x|": lambda x: x.abs(),
    "|x| by where": lambda x: torch.where(x > 0, x, -x),
    "a mask of a mirror": lambda x: x * (x.flip(-1) > 0),
    "a mask of another map": lambda x: x[:, :1] * (x[:, 1:] > 0),
    "a choice by another map": lambda x: torch.where(x[:, :1] > 0, x[:, 1:], 0.0),
    "the one of larger size": lambda x: torch.where(x[:, :1].abs() > x[:, 1:].abs(), x[:, :1], x[:, 1:]),
    "larger by a margin": lambda x: torch.where(x[:, :1] > x[:, 1:] + 0.1, x[:, :1], x[:, 1:]),
}
"""None of them is a gate."""
