"""Smooth functions that gate nothing against torch.autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.gate_checks import check_gate
from helpers.rule_checks import Op, check_ordinary
from torch import Tensor

from sptrace.artifact.softening import Softening


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(torch.sigmoid, id="sigmoid"),
        pytest.param(torch.tanh, id="tanh"),
        pytest.param(torch.exp, id="exp"),
        pytest.param(lambda x: torch.log(x * x + 0.5), id="log"),
        pytest.param(torch.erf, id="erf"),
        pytest.param(lambda x: torch.sqrt(x * x + 0.5), id="sqrt"),
        pytest.param(lambda x: torch.rsqrt(x * x + 0.5), id="rsqrt"),
        pytest.param(lambda x: x**3, id="cube"),
        pytest.param(lambda x: x.square() + x**2, id="square"),
        pytest.param(lambda x: (x * x + 0.5) ** -0.75, id="power"),
        pytest.param(lambda x: (x * x + 0.5) ** 0.5, id="square root as a power"),
        pytest.param(torch.sin, id="sin"),
        pytest.param(torch.cos, id="cos"),
        pytest.param(torch.abs, id="abs"),
        pytest.param(F.logsigmoid, id="log sigmoid"),
        pytest.param(lambda x: x * x.detach(), id="detach"),
    ],
)
def test_function(function: Callable[[Tensor], Tensor]) -> None:
    check_ordinary(Op(function), 2, 3, 4)


def test_hardsigmoid() -> None:
    """Not against autograd, whose 1 / 6 has only the digits of float32."""
    check_gate(F.hardsigmoid, lambda z: 1 / 6 if -3 < z < 3 else 0.0, Softening("paper"))


@pytest.mark.parametrize(
    "selection",
    [
        pytest.param(lambda x: torch.where(x > 0.2, x * x, x.flip(1)), id="of two tensors"),
        pytest.param(lambda x: torch.where(x[:, :1] > 0.2, x, 2.0), id="of a tensor and a number"),
        pytest.param(
            lambda x: torch.where(x > 0.2, 2.0, x.mean(1, keepdim=True)), id="of a number and a tensor"
        ),
        pytest.param(lambda x: torch.maximum(x, x.flip(1) * x), id="maximum"),
        pytest.param(lambda x: torch.minimum(x, x.flip(1)[:, :1]), id="minimum"),
        pytest.param(lambda x: torch.where(x > x.flip(1), x * x, 0.0), id="by > of two tensors"),
        pytest.param(
            lambda x: torch.where(x >= x.mean(1, keepdim=True), x * x, 0.0), id="by >= of two tensors"
        ),
        pytest.param(lambda x: torch.where(x < x.flip(1), x * x, 0.0), id="by < of two tensors"),
        pytest.param(
            lambda x: torch.where(x <= x.mean(1, keepdim=True), x * x, 0.0), id="by <= of two tensors"
        ),
        pytest.param(lambda x: torch.where((x < -1) | (x > 1), x * x, x), id="by or"),
        pytest.param(lambda x: torch.where(~((x > -1) & (x < 1)), x * x, x), id="by not, and"),
        pytest.param(lambda x: torch.where(x.relu() != 0, x * x, x), id="by !="),
    ],
)
def test_selection(selection: Callable[[Tensor], Tensor]) -> None:
    check_ordinary(Op(selection), 2, 3, 4)
