"""Reductions that are no plain mean or sum, against torch.autograd; running sums against their matrix."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.rule_checks import Op, check_linear, check_ordinary
from torch import Tensor


@pytest.mark.parametrize(
    "reduction",
    [
        pytest.param(lambda x: x.amax((2, 3)), id="amax"),
        pytest.param(lambda x: x.amax(1, keepdim=True), id="amax over channels"),
        pytest.param(lambda x: torch.cat([x, x], 1).amax(1), id="amax of equal numbers"),
        pytest.param(lambda x: x.max(-1).values, id="max along a dimension"),
        pytest.param(lambda x: torch.max(x, 2, keepdim=True)[0], id="max, keepdim"),
        pytest.param(lambda x: x.norm(dim=1), id="norm"),
        pytest.param(lambda x: torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True), id="norm of channels"),
        pytest.param(lambda x: x.norm(p=1, dim=-1), id="norm of order 1"),
        pytest.param(lambda x: torch.nn.functional.normalize(x, dim=1), id="normalize"),
        pytest.param(lambda x: x.var((1, 2), unbiased=False), id="var"),
        pytest.param(lambda x: x.std(-1, keepdim=True), id="std"),
        pytest.param(lambda x: torch.var(x, 1, correction=2), id="var with a correction"),
    ],
)
def test_reduction(reduction: Callable[[Tensor], Tensor]) -> None:
    check_ordinary(Op(reduction), 4, 3, 5)


@pytest.mark.parametrize("dim", [1, -1])
def test_running_sum(dim: int) -> None:
    check_linear(Op(lambda x: x.cumsum(dim)), 2, 3, 4)
