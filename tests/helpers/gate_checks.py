"""Element-wise gates against their diagonals, written out with Python's math."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from helpers.rule_checks import Op, check_jacobians
from sptrace.artifact.softening import Softening

Activation = Callable[[Tensor], Tensor]
Gate = Callable[[float], float]

VALUES = (-40.0, -6.0, -2.5, -1.0, -0.75, -0.25, -0.0, 0.0, 0.125, 0.5, 1.0, 1.5, 4.0, 6.0, 7.25, 50.0)
"""Inside and outside of all gates, far out, and on the edges themselves."""


def phi(t: float) -> float:
    return (1 + math.erf(t / math.sqrt(2))) / 2


def sigma(t: float) -> float:
    return 1 / (1 + math.exp(-t)) if t > 0 else math.exp(t) / (1 + math.exp(t))


def values() -> Tensor:
    """Two pictures of all the values."""
    return torch.tensor([VALUES, VALUES[::-1]], dtype=torch.float64).reshape(2, 1, 4, 4)


def check_gate(activation: Activation, gate: Gate, softening: Softening) -> None:
    """The Jacobian of the softened op is diagonal: gate(z) for every number z of the picture."""
    image = values()
    diagonals = torch.tensor(
        [[gate(z) for z in row] for row in image.flatten(1).tolist()], dtype=torch.float64
    )
    check_jacobians(Op(activation), image, torch.diag_embed(diagonals), softening=softening)


def soft(kind: str, rule: str, tau: float | None = None) -> Softening:
    return Softening("paper", rule={kind: rule}, tau={} if tau is None else {kind: tau})
