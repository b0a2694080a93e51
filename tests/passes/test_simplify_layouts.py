from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.rule_checks import numbers
from helpers.small_networks import ops
from torch import Tensor, fx, nn

from sptrace.compiler.graph.builder import GraphBuilder, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.passes import simplify_layouts

aten = torch.ops.aten
Step = tuple[Any, ...]


def graph(*steps: Step, sizes: tuple[int, ...] = (6, 4)) -> fx.GraphModule:
    """x [N, *sizes] -> one op after the other, each given with what follows its input."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    builder = GraphBuilder(module)
    node = module.graph.placeholder("x")
    record(node, Facts(without_data(*sizes, dtype=torch.float32)))
    for target, *args in steps:
        node = builder.call(target, node, *args)
    module.graph.output(node)
    module.recompile()
    return module


def simplified(module: fx.GraphModule, x: Tensor, count: int) -> list[tuple[str, Any]]:
    """The pass applies `count` times; the calls that are left, each with its second argument."""
    wanted = module(x)
    assert simplify_layouts(module) == count
    module.graph.lint()
    module.recompile()
    assert torch.equal(module(x), wanted)
    return [
        (str(node.target).split(".")[1], node.args[1])
        for node in module.graph.nodes
        if node.op == "call_function"
    ]


@pytest.mark.parametrize("swap", [(aten.transpose.int, 1, 2), (aten.permute.default, [0, -1, 1])])
def test_1_tokens_to_a_map(swap: Step) -> None:
    module = graph(swap, (aten.reshape.default, [-1, 4, 2, 3]))
    calls = simplified(module, numbers(2, 6, 4), 1)
    assert calls == [("reshape", [-1, 2, 3, 4]), ("permute", [0, 3, 1, 2])]


def test_2_a_map_to_tokens() -> None:
    module = graph((aten.reshape.default, [-1, 4, 6]), (aten.transpose.int, 2, 1), sizes=(4, 2, 3))
    calls = simplified(module, numbers(2, 4, 2, 3), 1)
    assert calls == [("permute", [0, 2, 3, 1]), ("reshape", [-1, 6, 4])]


def test_3_permutations_join() -> None:
    module = graph((aten.permute.default, [0, 2, 3, 1]), (aten.transpose.int, 1, 2), sizes=(4, 2, 3))
    assert simplified(module, numbers(2, 4, 2, 3), 1) == [("permute", [0, 3, 2, 1])]


def test_3_and_vanish() -> None:
    module = graph(
        (aten.permute.default, [0, 2, 3, 1]), (aten.permute.default, [0, 3, 1, 2]), sizes=(4, 2, 3)
    )
    assert simplified(module, numbers(2, 4, 2, 3), 1) == []


def test_4_reshapes_join_and_vanish() -> None:
    module = graph((aten.reshape.default, [-1, 24]), (aten.reshape.default, [-1, 3, 8]))
    assert simplified(module, numbers(2, 6, 4), 1) == [("reshape", [-1, 3, 8])]
    module = graph((aten.reshape.default, [-1, 24]), (aten.reshape.default, [-1, 6, 4]))
    assert simplified(module, numbers(2, 6, 4), 1) == []


@pytest.mark.parametrize(
    ("module", "sizes"),
    [
        (graph((aten.transpose.int, 1, 2), (aten.reshape.default, [-1, 2, 4, 3])), (6, 4)),
        (graph((aten.transpose.int, 1, 2), (aten.reshape.default, [-1, 24])), (6, 4)),
        (graph((aten.reshape.default, [-1, 2, 12]), (aten.transpose.int, 1, 2), sizes=(4, 2, 3)), (4, 2, 3)),
        (
            graph((aten.reshape.default, [-1, 4, 6]), (aten.permute.default, [2, 0, 1]), sizes=(4, 2, 3)),
            (4, 2, 3),
        ),
    ],
    ids=["channels are cut", "flattened", "channels are joined", "the batch moves"],
)
def test_declines(module: fx.GraphModule, sizes: tuple[int, ...]) -> None:
    before = ops(module)
    simplified(module, numbers(2, *sizes), 0)
    assert ops(module) == before
