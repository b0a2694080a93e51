from __future__ import annotations

import pytest
import torch
from helpers.small_networks import assert_same_values, images, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.facts import facts
from sptrace.passes.narrow_doubles import narrow_doubles


def in_double(self: nn.Module, x: Tensor) -> Tensor:
    weights = x.flatten(2).double().softmax(-1)
    scale = torch.linspace(0.5, 1.5, 256, dtype=torch.float64)
    return self.head((weights * scale).sum(-1).float() + x.mean((2, 3)))


def with_dtypes(self: nn.Module, x: Tensor) -> Tensor:
    grid = torch.linspace(0, 1, 16, dtype=torch.float64)
    return self.head((x * grid).sum((2, 3), dtype=torch.float64).to(torch.float32))


@pytest.mark.parametrize("body", [in_double, with_dtypes])
def test_everything_is_float32(body: object) -> None:
    network = small(body, head=nn.Linear(3, 4))
    module = capture(network, images(2))
    assert narrow_doubles(module) > 0
    assert_same_values(module, network, tolerance=1e-6)
    kept = [tensor for node in module.graph.nodes for tensor in facts(node).values]
    assert not [tensor for tensor in kept if isinstance(tensor, Tensor) and tensor.dtype == torch.float64]


def test_a_network_in_float32_stays() -> None:
    network = small(lambda self, x: self.head(x.mean((2, 3))), head=nn.Linear(3, 4))
    module = capture(network, images(2))
    before = str(module.graph)
    assert narrow_doubles(module) == 0
    assert str(module.graph) == before
