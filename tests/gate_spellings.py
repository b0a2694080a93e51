"""Gates as networks write them out of simpler calls, and the gate that each of them is."""

from __future__ import annotations

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
