from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import assert_same_values, images, ops, small
from torch import Tensor

from sptrace.capture import capture
from sptrace.passes import canonicalize_synonyms
from sptrace.passes.canonicalize_synonyms import REWRITES, SYNONYMS


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
        (lambda self, x: x.narrow(2, 3, 4), "slice.Tensor"),
        (lambda self, x: x.narrow(-1, -5, 2), "slice.Tensor"),
        (lambda self, x: x.narrow(-1, -2, 2), "slice.Tensor"),
        (lambda self, x: x.movedim(1, 3), "permute.default"),
        (lambda self, x: x.movedim(-1, -3), "permute.default"),
        (lambda self, x: x.flatten(1).T.T, "permute.default"),
        (lambda self, x: x.mT, "transpose.int"),
    ],
)
def test_the_first_name(body: Callable[[Any, Tensor], Tensor], op: str) -> None:
    network = small(body, constant=torch.ones(3, 1, 1))
    module = capture(network, images(1))
    assert canonicalize_synonyms(module) > 0
    called = ops(module)
    assert f"aten.{op}" in called
    assert not {str(target) for target in [*SYNONYMS, *REWRITES]} & called.keys()
    assert_same_values(module, network)


def test_leaves_the_others_alone() -> None:
    module = capture(small(lambda self, x: x.clamp(0, 1).transpose(1, 2) * 2), images(1))
    assert canonicalize_synonyms(module) == 0
