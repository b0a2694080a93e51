from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_networks import assert_same_values, images, ops, small
from torch import Tensor

from sptrace.compiler.capture.from_torch import capture
from sptrace.passes import canonicalize_synonyms
from sptrace.passes.canonicalize_synonyms import LOGICAL, REWRITES, SYNONYMS


@pytest.mark.parametrize(
    ("body", "op"),
    [
        (lambda self, x: torch.clip(x, -0.5, 0.5), "clamp.default"),
        (lambda self, x: torch.concat([x, x], 2), "cat.default"),
        (lambda self, x: torch.concatenate([x, x], 1), "cat.default"),
        (lambda self, x: torch.divide(x, 3), "div.Tensor"),
        (lambda self, x: torch.true_divide(x, self.constant), "div.Tensor"),
        (lambda self, x: torch.multiply(x, self.constant), "mul.Tensor"),
        (lambda self, x: torch.negative(x), "neg.default"),
        (lambda self, x: torch.subtract(x, self.constant, alpha=2), "sub.Tensor"),
        (lambda self, x: torch.swapaxes(x, 1, -1), "transpose.int"),
        (lambda self, x: torch.swapdims(x, 2, 3), "transpose.int"),
        (lambda self, x: x[:, :1].expand_as(x), "expand.default"),
        (lambda self, x: self.constant[None].expand_as(x) + x, "expand.default"),
        (lambda self, x: x * torch.fill(x, self.constant.sum()), "expand.default"),
        (lambda self, x: x.narrow(2, 3, 4), "slice.Tensor"),
        (lambda self, x: x.narrow(-1, -5, 2), "slice.Tensor"),
        (lambda self, x: x.narrow(-1, -2, 2), "slice.Tensor"),
        (lambda self, x: x.flatten(1).T.T, "permute.default"),
        (lambda self, x: x.mT, "transpose.int"),
        (lambda self, x: x * ((x > 0) & (x < 1)), "logical_and.default"),
        (lambda self, x: x * torch.bitwise_and(x > 0, x < 1), "logical_and.default"),
        (lambda self, x: x * ((x > 1) | (x < 0)), "logical_or.default"),
        (lambda self, x: x * torch.bitwise_or(x > 1, x < 0), "logical_or.default"),
        (lambda self, x: x * ~(x > 0), "logical_not.default"),
    ],
)
def test_the_first_name(body: Callable[[Any, Tensor], Tensor], op: str) -> None:
    network = small(body, constant=torch.ones(3, 1, 1))
    module = capture(network, images(1))
    assert canonicalize_synonyms(module) > 0
    called = ops(module)
    assert f"aten.{op}" in called
    assert not {str(target) for target in [*SYNONYMS, *REWRITES, *LOGICAL]} & called.keys()
    assert_same_values(module, network)


def test_leaves_the_others_alone() -> None:
    """Bits of whole numbers are no truth values."""
    network = small(
        lambda self, x: x.clamp(0, 1).transpose(1, 2) * (x.argmax(1)[:, None] & 2).float().transpose(1, 2)
    )
    module = capture(network, images(1))
    assert canonicalize_synonyms(module) == 0
