"""The gates of SiLU, GELU, Hardswish, Mish and Softplus: m(z / tau) in place of the derivative."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from helpers.gate_checks import Activation, Gate, check_gate, phi, sigma, soft, values
from helpers.rule_checks import Op, check_jacobians, check_ordinary
from torch import Tensor, nn

from sptrace.artifact.softening import RULES, Softening


def phi_tanh(t: float) -> float:
    return (1 + math.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))) / 2


def hardsigmoid(t: float) -> float:
    return min(1.0, max(0.0, t / 6 + 0.5))


def mish(t: float) -> float:
    return math.tanh(max(t, 0) + math.log1p(math.exp(-abs(t))))


def written_in_place(x: Tensor) -> Tensor:
    z = x * 1
    return z.mul_(z.sigmoid())


CASES = [
    pytest.param("silu", nn.SiLU(), sigma, 1.6, id="SiLU"),
    pytest.param("silu", nn.SiLU(inplace=True), sigma, 1.6, id="SiLU in place"),
    pytest.param("silu", lambda x: x * x.sigmoid(), sigma, 1.6, id="SiLU written out"),
    pytest.param("silu", lambda x: x.sigmoid().mul(x), sigma, 1.6, id="SiLU from the right"),
    pytest.param("silu", written_in_place, sigma, 1.6, id="SiLU written out in place"),
    pytest.param(
        "quick_gelu", lambda x: x * (1.702 * x).sigmoid(), lambda t: sigma(1.702 * t), 1.0, id="quick GELU"
    ),
    pytest.param("gelu", nn.GELU(), phi, 1.0, id="GELU"),
    pytest.param("gelu", nn.GELU("tanh"), phi_tanh, 1.0, id="GELU by tanh"),
    pytest.param("hardswish", nn.Hardswish(), hardsigmoid, 1.0, id="Hardswish"),
    pytest.param("mish", nn.Mish(), mish, 1.0, id="Mish"),
    pytest.param("softplus", nn.Softplus(), sigma, 1.0, id="Softplus"),
    pytest.param("softplus", nn.Softplus(beta=2.5), lambda t: sigma(2.5 * t), 1.0, id="Softplus with beta"),
]


@pytest.mark.parametrize(("kind", "activation", "gate", "tau"), CASES)
def test_gate(kind: str, activation: Activation, gate: Gate, tau: float) -> None:
    check_gate(activation, lambda z: gate(z / tau), Softening("paper"))
    check_gate(activation, lambda z: gate(z / 0.3), soft(kind, "gate", 0.3))


@pytest.mark.parametrize(("kind", "activation", "gate", "tau"), CASES)
def test_hard_is_the_derivative(kind: str, activation: Activation, gate: Gate, tau: float) -> None:
    check_ordinary(Op(activation), image=values())


@pytest.mark.parametrize("activation", [lambda x: x * F.hardsigmoid(x), lambda x: F.hardsigmoid(x).mul_(x)])
def test_hardswish_written_out(activation: Activation) -> None:
    """Its hard rule is not compared: PyTorch's own hardsigmoid divides by a float32 six, also in float64."""
    check_gate(activation, hardsigmoid, Softening("paper"))
    check_gate(activation, lambda z: hardsigmoid(z / 0.3), soft("hardswish", "gate", 0.3))


@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("tau", [None, 0.3])
def test_glu(tau: float | None, dim: int) -> None:
    """y = a sigma(b): a carries the cotangent through the gate, b none."""
    image = values().reshape(2, 2, 2, 4)
    matrices = []
    for picture in image:
        size = picture.numel()
        positions = torch.arange(size).reshape(picture.shape)
        axis = dim - 1 if dim > 0 else dim
        first, second = (part.flatten().tolist() for part in positions.chunk(2, axis))
        matrix = torch.zeros(size // 2, size, dtype=torch.float64)
        for row, (a, b) in enumerate(zip(first, second, strict=True)):
            matrix[row, a] = sigma(float(picture.flatten()[b]) / (tau or 1.0))
        matrices.append(matrix)
    softening = soft("glu", "gate", tau) if tau else Softening("paper")
    check_jacobians(Op(lambda x: F.glu(x, dim)), image, torch.stack(matrices), softening=softening)
    check_ordinary(Op(lambda x: F.glu(x, dim)), 4, 3, 2)


def test_every_rule_is_tested_above() -> None:
    for kind in ("silu", "quick_gelu", "gelu", "hardswish", "mish", "softplus", "glu"):
        assert tuple(RULES[kind]) == ("gate", "hard")


def test_a_sigmoid_of_something_else_is_no_gate() -> None:
    """Squeeze-excite: an ordinary product."""
    check_ordinary(Op(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), 2, 3, 4)
