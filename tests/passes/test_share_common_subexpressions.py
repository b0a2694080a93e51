from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_networks import assert_same_values, images, ops, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.builder import GraphBuilder, placeholder, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.passes import share_common_subexpressions

aten = torch.ops.aten


def test_what_is_computed_twice_is_computed_once() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y * 2 + y * 2

    network = small(body, conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    assert ops(module)["aten.mul.Tensor"] == 2
    assert share_common_subexpressions(module) == 1
    assert ops(module)["aten.mul.Tensor"] == 1
    assert_same_values(module, network)


def test_a_whole_chain_is_shared() -> None:
    """The second convolution reads the weights again, and each later call reads what has just been shared."""

    def body(self: Any, x: Tensor) -> Tensor:
        one, two = (torch.sum(self.conv(x).relu() * 2, (2, 3), keepdim=True) for _ in range(2))
        return torch.cat([one, two], 1)

    network = small(body, conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    assert share_common_subexpressions(module) == 4
    assert ops(module)["aten.conv2d.default"] == ops(module)["aten.sum.dim_IntList"] == 1
    assert_same_values(module, network)


def test_a_constant_read_twice() -> None:
    module = capture(small(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 3)), images(1))
    graph = module.graph
    [weight] = [node for node in graph.nodes if node.target == "conv.weight"]
    with graph.inserting_after(weight):
        again = graph.get_attr("conv.weight")
    again.meta = weight.meta
    builder = GraphBuilder(module)
    [convolution] = [node for node in graph.nodes if node.target == aten.conv2d.default]
    with graph.inserting_after(convolution):
        builder.call(aten.mul.Tensor, again, 2.0)
    assert share_common_subexpressions(module) == 1
    assert [node.target for node in graph.nodes if node.op == "get_attr"].count("conv.weight") == 1


DIFFERENT: dict[str, Callable[[GraphBuilder, Any], list[Any]]] = {
    "arguments": lambda make, x: [make.call(aten.mul.Tensor, x, number) for number in (2, 3)],
    "order": lambda make, x: [make.call(aten.sub.Tensor, *pair) for pair in ((x, 2.0), (2.0, x))],
    "keywords": lambda make, x: [make.call(aten.add.Tensor, x, x, alpha=number) for number in (1, 2)],
    "types": lambda make, x: [make.call(aten.mul.Tensor, x, number) for number in (1, 1.0, True)],
    "lists": lambda make, x: [
        make.call(aten.sum.dim_IntList, x, dims, True) for dims in ([1], [1, 2], [2, 1])
    ],
    "ops": lambda make, x: [make.call(op, x) for op in (aten.exp.default, aten.erf.default)],
    "dtypes": lambda make, x: [make.call(aten.to.dtype, x, dtype) for dtype in (torch.int64, torch.bool)],
}


@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_what_differs_is_kept(make: Callable[[GraphBuilder, Any], list[Any]]) -> None:
    module = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    image = module.graph.placeholder("image")
    # Of integers: 1 and 1.0 make results of different dtypes.
    record(image, Facts(without_data(3, 4, 4, dtype=torch.int64)))
    results = make(GraphBuilder(module), placeholder(module.graph, "image"))
    module.graph.output(tuple(results))
    assert share_common_subexpressions(module) == 0
    assert sum(ops(module).values()) == len(results)
