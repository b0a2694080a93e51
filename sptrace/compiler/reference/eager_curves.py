"""Smooth gates that a network writes out of simpler calls, told by their numbers: x / (1 + exp(-x)) is a SiLU.

What is compared are answers at some points with PyTorch's own functions; nothing is shared with the compiler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

END = 40.0

POINTS = torch.tensor(
    [
        END,
        -END,
        0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        *(sign * 0.07 * 1.13**step for step in range(41) for sign in (1, -1)),
    ],
    dtype=torch.float64,
)
"""Where functions are compared: between -9.3 and 9.3, and far away."""

ALIKE = 2e-6
"""How much they may differ, as a share of max(1, |z|)."""


class Shape(NamedTuple):
    """factor * gate(z), or factor * gate(-z) if it is mirrored: its kind, and what its rule asks for."""

    kind: str
    arguments: Mapping[str, Any]
    factor: float
    mirrored: bool


def probes(shape: torch.Size) -> Tensor:
    """Some tensors of that shape, float64 [tries, ...], in which each of the POINTS occurs."""
    count = max(shape.numel(), 1)
    tries = math.ceil(len(POINTS) / count)
    return POINTS.repeat(math.ceil(tries * count / len(POINTS)))[: tries * count].reshape(tries, *shape)


def short(rank: int) -> Tensor:
    """All POINTS along the first of so many dimensions: [points, 1, ...]."""
    return POINTS.reshape(-1, *[1] * (rank - 1))


def shape_of(probe: Tensor, answer: Tensor) -> Shape | None:
    """What gate gives such answers to `probes`; None if it is none."""
    probe, answer = probe.flatten(), answer.flatten()
    if not bool(answer.isfinite().all()):
        return None
    for mirrored, sign in ((False, 1.0), (True, -1.0)):
        at = {float(z): float(y) for z, y in zip(sign * probe[: len(POINTS)], answer, strict=False)}
        factor = at[END] / END
        if abs(factor) < 1e-6:
            continue
        for kind, arguments, function in _candidates(at[0.0] / factor, at[-1.0] / factor, at[-2.0] / factor):
            if all(
                _alike(factor * function(sign * some), given, factor, some)
                for some, given in ((probe[: len(POINTS)], answer[: len(POINTS)]), (probe, answer))
            ):
                return Shape(kind, arguments, factor, mirrored)
    return None


def _alike(wanted: Tensor, answer: Tensor, factor: float, probe: Tensor) -> bool:
    return bool(((answer - wanted).abs() <= ALIKE * abs(factor) * probe.abs().clamp(min=1)).all())


Candidate = tuple[str, dict[str, Any], Callable[[Tensor], Tensor]]


def _candidates(at_0: float, at_1: float, at_2: float) -> list[Candidate]:
    """Gates that go to z far above 0; their own numbers are what they answer to 0, -1 and -2."""
    found: list[Candidate] = [
        ("hardswish", {}, F.hardswish),
        ("mish", {}, F.mish),
        ("gelu", {"approximate": "tanh"}, lambda z: F.gelu(z, approximate="tanh")),
        ("gelu", {"approximate": "none"}, F.gelu),
        ("silu", {}, F.silu),
    ]
    if -1 < at_1 < 0:  # -sigmoid(-c)
        sharpness = math.log(-1 - 1 / at_1) if at_1 > -0.5 else -math.log(-at_1 / (1 + at_1))
        found.append(("quick_gelu", {"sharpness": sharpness}, lambda z: z * torch.sigmoid(sharpness * z)))
    if at_0 > 0:
        beta = math.log(2) / at_0
        found.append(("softplus", {"beta": beta}, lambda z: F.softplus(z, beta, 30.0)))
    if at_2 < at_1 < 0 < at_2 / at_1 - 1 < 1:  # alpha (e^-c - 1), alpha (e^-2c - 1)
        slope = -math.log(at_2 / at_1 - 1)
        alpha = at_1 / math.expm1(-slope)
        found.append(
            (
                "elu",
                {"alpha": alpha, "slope": slope},
                lambda z: z.clamp(min=0) + alpha * torch.expm1(slope * z.clamp(max=0)),
            )
        )
    return found
