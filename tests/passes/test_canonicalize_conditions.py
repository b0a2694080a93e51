"""Masks and counts as the network has them, on numbers that are infinite, missing, 0 and on bounds."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.small_networks import Small, images
from torch import Tensor

from sptrace import passes
from sptrace.compiler.capture.from_torch import capture

SPECIAL = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, math.inf, -math.inf, math.nan])
BOUNDS = torch.tensor([-1.0, 0.5, 1.0])

MASKS = {
    "isnan": torch.isnan,
    "isinf": torch.isinf,
    "isposinf": torch.isposinf,
    "isneginf": torch.isneginf,
    "isfinite": torch.isfinite,
    "logical_xor": lambda x: torch.logical_xor(x > 0, x),
    "logical_or of numbers": lambda x: torch.logical_or(x, x - 1),
    "bitwise_xor": lambda x: (x > 0) ^ (x < 1),
    "any": lambda x: (x > 0.6).any(3),
    "any of several": lambda x: (x > 0.6).any(3, keepdim=True).any(2),
    "all": lambda x: (x == x).all(3),
    "count_nonzero": lambda x: torch.count_nonzero(x, (2, 3)),
    "sum of a mask": lambda x: (x > 0).sum((1, 3)),
    "product of masks": lambda x: (x > 0) * (x < 1),
    "bucketize": lambda x: torch.bucketize(x.nan_to_num(), BOUNDS),
    "bucketize right": lambda x: torch.bucketize(x.nan_to_num(), BOUNDS, right=True),
    "searchsorted": lambda x: torch.searchsorted(BOUNDS, x.nan_to_num(), side="right"),
}


@pytest.mark.parametrize("name", MASKS)
def test_as_the_network(name: str) -> None:
    def body(self: object, x: Tensor) -> Tensor:
        return MASKS[name](x * SPECIAL).flatten(1).float() + 0 * x.mean()

    network = Small(body).eval()
    module = capture(network, images(1, 8))
    passes.run(passes.PREPARE, module)
    assert not {node.target for node in module.graph.nodes} & {
        torch.ops.aten.isnan.default,
        torch.ops.aten.any.dim,
        torch.ops.aten.bucketize.Tensor,
    }
    image = images(3, 8, seed=2)
    image[0] = 1.0
    assert torch.equal(module(image), network(image))
