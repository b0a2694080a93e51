"""share_gates, absorb_cotangent_factors and drop_expansions: what the arithmetic of a pullback is lowered to."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.rule_checks import numbers
from helpers.small_networks import ops
from torch import Tensor, fx, nn

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.compiler.pullback.table import TABLE, Pull
from sptrace.passes import absorb_cotangent_factors, drop_expansions, share_common_subexpressions, share_gates

aten = torch.ops.aten


def start(*sizes: int) -> tuple[fx.GraphModule, GraphBuilder, fx.Node]:
    module = fx.GraphModule(nn.Module(), fx.Graph())
    x = module.graph.placeholder("x")
    record(x, Facts(without_data(*sizes, dtype=torch.float32)))
    return module, Pull(module, {x}), x


def finish(module: fx.GraphModule, *results: fx.Node) -> fx.GraphModule:
    module.graph.output(results)
    module.recompile()
    return module


def assert_kept(before: fx.GraphModule, after: fx.GraphModule, x: Tensor) -> None:
    after.graph.lint()
    after.recompile()
    for wanted, given in zip(before(x), after(x), strict=True):
        assert given.shape == wanted.shape
        assert (given - wanted).abs().max() <= 1e-6 * wanted.abs().max()


GATES: list[tuple[Any, tuple[Any, ...], str]] = [
    (gates.gelu, ("none",), "aten.erf.default"),
    (gates.gelu, ("tanh",), "aten.tanh.default"),
    (gates.silu, (1.0,), "aten.sigmoid.default"),
    (gates.silu, (1.702,), "aten.sigmoid.default"),
    (gates.hardswish, (), "aten.hardsigmoid.default"),
    (gates.mish, (), "aten.tanh.default"),
]


def gated(gate: Any, options: tuple[Any, ...], rule: str, tau: float | None) -> fx.GraphModule:
    """The activation of x, and the pullback of a cotangent that is x too."""
    module, builder, x = start(7)
    y = builder.call(gate, x, *options, rule=rule, tau=tau)
    assert isinstance(builder, Pull)
    [(_, cotangent)] = TABLE[gate](builder, x, y, x, *options, rule=rule, tau=tau)
    assert cotangent is not None
    return finish(module, y, cotangent)


@pytest.mark.parametrize(("gate", "options", "factor"), GATES)
def test_a_gate_is_computed_once(gate: Any, options: tuple[Any, ...], factor: str) -> None:
    module = gated(gate, options, "gate", 1.0)
    before = copy.deepcopy(module)
    assert share_gates(module) == 1
    share_common_subexpressions(module)
    assert_kept(before, module, numbers(5, 7))
    assert ops(module)[factor] == 1
    assert not any(node.target is gate for node in module.graph.nodes)


@pytest.mark.parametrize(("gate", "options", "factor"), GATES)
@pytest.mark.parametrize(("rule", "tau"), [("hard", None), ("gate", 0.5)])
def test_another_gate_is_not_shared(
    gate: Any, options: tuple[Any, ...], factor: str, rule: str, tau: float | None
) -> None:
    module = gated(gate, options, rule, tau)
    before = ops(module)
    assert share_gates(module) == 0
    module.graph.eliminate_dead_code()
    assert ops(module) == before


def product(reader: str, constant: bool = True, alone: bool = True) -> fx.GraphModule:
    module, builder, x = start(4, 6, 6)
    half = builder.call(aten.mul.Tensor, x, 0.5)
    if reader == "convolution":
        weight = builder.constant("weight", numbers(4, 5, 3, 3))
        turned = builder.call(aten.flip.default, builder.call(aten.transpose.int, weight, 0, 1), [2, 3])
        options = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        result = builder.call(aten.convolution.default, half, turned, *options)
    else:
        weight = builder.constant("weight", numbers(6, 8)) if constant else x
        result = builder.call(aten.matmul.default, half, weight)
    return finish(module, result, *([] if alone else [half]))


@pytest.mark.parametrize("reader", ["convolution", "matmul"])
def test_a_factor_becomes_part_of_the_weights(reader: str) -> None:
    module = product(reader)
    before = copy.deepcopy(module)
    assert absorb_cotangent_factors(module) == 1
    assert_kept(before, module, numbers(2, 4, 6, 6))
    [scaled] = [node for node in module.graph.nodes if node.target == aten.mul.Tensor]
    source = scaled
    while source.op == "call_function":
        [source] = source.all_input_nodes
    assert source.target == "weight"


@pytest.mark.parametrize(("constant", "alone"), [(False, True), (True, False)])
def test_a_factor_that_stays(constant: bool, alone: bool) -> None:
    """Where the product is read elsewhere too, or the other operand is no constant."""
    assert absorb_cotangent_factors(product("matmul", constant, alone)) == 0


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("op", [aten.add.Tensor, aten.mul.Tensor])
def test_arithmetic_broadcasts(op: Any, first: bool) -> None:
    module, builder, x = start(4, 6, 6)
    wide = builder.call(aten.expand.default, builder.call(aten.mean.dim, x, [2, 3], True), [-1, -1, 6, 6])
    finish(module, builder.call(op, *((wide, x) if first else (x, wide))))
    before = copy.deepcopy(module)
    assert drop_expansions(module) == 1
    assert_kept(before, module, numbers(2, 4, 6, 6))
    assert ops(module)["aten.expand.default"] == 0


def test_an_expansion_that_gives_the_shape_stays() -> None:
    module, builder, x = start(1, 6)
    wide = builder.call(aten.expand.default, x, [-1, 5, -1])
    finish(module, builder.call(aten.add.Tensor, wide, builder.call(aten.mul.Tensor, x, 2.0)))
    assert drop_expansions(module) == 0
    module, builder, x = start(1, 6)
    wide = builder.call(aten.expand.default, x, [-1, 5, -1])
    finish(module, builder.call(aten.mul.Tensor, wide, wide))
    assert drop_expansions(module) == 0
