"""The gates of LeakyReLU, PReLU, ELU, SELU and CELU: the step at 0 softened, what is left below it held."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.gate_checks import Activation, Gate, check_gate, phi, soft, values
from helpers.rule_checks import Op, check_jacobians, check_ordinary, numbers
from torch import nn

from sptrace.artifact.softening import RULES, Softening

ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805


def below(alpha: float, slope: float) -> Gate:
    """y / z of alpha (exp(slope z) - 1), and its limit at 0."""
    return lambda z: alpha * math.expm1(slope * z) / z if z < 0 else alpha * slope


CASES = [
    pytest.param("leaky_relu", nn.LeakyReLU(), lambda z: 0.01, 1.0, id="LeakyReLU"),
    pytest.param("leaky_relu", nn.LeakyReLU(0.2, inplace=True), lambda z: 0.2, 1.0, id="in place"),
    pytest.param("elu", nn.ELU(), below(1, 1), 1.0, id="ELU"),
    pytest.param("elu", nn.ELU(alpha=0.5), below(0.5, 1), 1.0, id="ELU with a step"),
    pytest.param("elu", nn.CELU(alpha=2.0), below(2, 0.5), 1.0, id="CELU"),
    pytest.param("elu", nn.SELU(), below(ALPHA, 1), SCALE, id="SELU"),
]


@pytest.mark.parametrize(("kind", "activation", "rest", "scale"), CASES)
@pytest.mark.parametrize("tau", [None, 0.25])
def test_gate(tau: float | None, kind: str, activation: Activation, rest: Gate, scale: float) -> None:
    def gate(z: float) -> float:
        step = phi(z / (tau or 0.6))
        return scale * (step + (1 - step) * rest(z))

    check_gate(activation, gate, soft(kind, "phi", tau) if tau else Softening("paper"))


@pytest.mark.parametrize(("kind", "activation", "rest", "scale"), CASES)
def test_hard_is_the_derivative(kind: str, activation: Activation, rest: Gate, scale: float) -> None:
    check_ordinary(Op(activation), image=values())


@pytest.mark.parametrize("slopes", [1, 3])
def test_prelu(slopes: int) -> None:
    prelu = nn.PReLU(slopes)
    prelu.weight.data = torch.linspace(0.25, 0.75, slopes)
    image = numbers(2, 3, 2, 3).double()
    rows = []
    for picture in image:
        slope = [float(prelu.weight.detach()[channel % slopes]) for channel in range(3) for _ in range(6)]
        steps = [phi(z / 0.6) for z in picture.flatten().tolist()]
        rows.append([step + (1 - step) * rest for step, rest in zip(steps, slope, strict=True)])
    check_jacobians(Op(prelu), image, torch.diag_embed(torch.tensor(rows, dtype=torch.float64)))
    check_ordinary(Op(prelu), 3, 2, 3)


def test_every_rule_is_tested_above() -> None:
    for kind in ("leaky_relu", "elu"):
        assert tuple(RULES[kind]) == ("phi", "hard")
