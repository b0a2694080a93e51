"""Functions written as a few simpler ops, against torch.autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import SINGLE, Op, check_all, numbers
from helpers.small_networks import assert_same_values, small
from torch import Tensor

from sptrace import passes
from sptrace.compiler.capture.from_torch import capture
from sptrace.errors import UnsupportedError

Function = Callable[[Tensor], Tensor]

GROUPS: dict[str, list[Function]] = {
    "logarithms and powers": [
        lambda x: (x * x + 0.5).log2(),
        lambda x: (x * x + 0.5).log10(),
        torch.exp2,
        torch.erfc,
        torch.deg2rad,
        torch.rad2deg,
        lambda x: torch.logaddexp(x, x.flip(1)),
        lambda x: torch.logaddexp2(x, x.mean(1, True)),
        lambda x: torch.logit(x.sigmoid()),
        lambda x: torch.logit(x.sigmoid(), 0.3),
        torch.sinc,
        lambda x: torch.hypot(x, x.flip(1) + 0.1),
        lambda x: torch.logsumexp(x, (1, 2)),
        lambda x: x.logsumexp(1, keepdim=True),
    ],
    "thresholds": [
        lambda x: F.threshold(x, 0.1, 0.2),
        lambda x: F.threshold(x, 0, 0),
        F.hardshrink,
        lambda x: F.softshrink(x, 0.3),
        F.tanhshrink,
        F.softsign,
        F.rrelu,
        lambda x: torch.nan_to_num(x, 1.0),
    ],
    "whole numbers": [
        torch.frac,
        lambda x: x * x.trunc(),
        lambda x: torch.fmod(x, 0.3),
        lambda x: torch.remainder(x, 0.3),
        lambda x: x * torch.floor_divide(x.detach(), 0.3),
        lambda x: x * torch.div(x, 0.3, rounding_mode="trunc"),
        lambda x: x * x.round(decimals=1),
        lambda x: x * x.sign() + x * x.ceil() + x * x.floor() + x * x.round(),
    ],
    "rearrangements": [
        lambda x: x.tril(),
        lambda x: x.triu(1),
        lambda x: x.rot90(1, (2, 3)),
        lambda x: x.rot90(2, (2, 3)),
        lambda x: x.rot90(-1, (1, 3)),
        lambda x: F.channel_shuffle(x, 2),
        lambda x: torch.lerp(x, x.flip(1), 0.3),
        lambda x: torch.lerp(x, x.flip(1), x * x),
    ],
    "products": [
        lambda x: x.prod(1),
        lambda x: x.prod(-1, keepdim=True),
        lambda x: x.prod(2),
        lambda x: torch.relu(x).prod(1),
    ],
}


@pytest.mark.parametrize("group", GROUPS)
def test_function(group: str) -> None:
    check_all(numbers(3, 4, 3, 5, seed=1).double(), *GROUPS[group])


def test_values_stay() -> None:
    network = small(lambda self, x: torch.lerp(x.rot90(1, (2, 3)), F.softshrink(x), 0.25).tril())
    module = capture(network, torch.zeros(2, 3, 16, 16))
    assert passes.canonicalize_functions(module) == 4
    assert_same_values(module, network, tolerance=SINGLE)


def test_an_active_rrelu_is_refused() -> None:
    module = capture(Op(lambda x: F.rrelu(x, training=True)), torch.zeros(2, 3, 4, 4))
    with pytest.raises(UnsupportedError, match="rrelu is active"):
        passes.canonicalize_functions(module)
