"""The walk from a torch.fx graph to an ONNX graph, and into the bodies of its loops."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import cast

import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import EMITTERS, OPSET, OnnxBuilder, source
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.loop import Loop
from sptrace.errors import UnsupportedError


def write(module: fx.GraphModule, name: str, outputs: Sequence[str]) -> ir.Graph:
    """Write a graph module as an ONNX graph.

    Arguments:
        module: its inputs keep their names; an input with a default need not be given.
        name: the graph's name.
        outputs: names for its outputs.

    Raises:
        UnsupportedError: the graph contains an op that has no emitter.
    """
    builder = OnnxBuilder(module, outputs)
    inputs = [builder.input(node) for node in module.graph.nodes if node.op == "placeholder"]
    results = [
        builder.output(result, output)
        for result, output in zip(_write_nodes(module, builder), outputs, strict=True)
    ]
    return _graph(builder, inputs, results, name)


def _write_nodes(module: fx.GraphModule, builder: OnnxBuilder) -> Sequence[fx.Node]:
    """Write all that stands between inputs and outputs; returns the nodes that the graph outputs."""
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            results: Sequence[fx.Node] = node.args[0]
            return results
        if node.op == "get_attr":
            builder.weight(node)
        elif node.op == "call_module":
            _write_loop(builder, node, module.get_submodule(str(node.target)))
        elif node.target is operator.getitem and node.args[0].op == "call_module":
            continue  # a state of a loop, bound with it
        elif node.target in EMITTERS:
            builder.emit(node, EMITTERS[node.target])
        elif not isinstance(facts(node).first, int | None):
            # Arithmetic on sizes is passed over: `OnnxBuilder.size` reads sizes off the shapes.
            raise UnsupportedError(
                f"there is no ONNX emitter for {node.target} ({source(node)}): add one to sptrace.compiler.emission"
            )
    raise AssertionError("a graph without an output")


def _write_loop(outer: OnnxBuilder, node: fx.Node, loop: object) -> None:
    """Loop(rounds, *carried, *fixed): the body reads what is fixed from the graph around it."""
    assert isinstance(loop, Loop)
    rounds, *tensors = cast(tuple[fx.Node, ...], node.args)
    carried, fixed = tensors[: loop.carried], tensors[loop.carried :]
    body = OnnxBuilder(loop.body, outer=outer)
    index, *places = (item for item in loop.body.graph.nodes if item.op == "placeholder")
    inputs = [body.bind(index, ir.val(body.unique(f"{node.name}/index")))]
    inputs.append(ir.val(body.unique(f"{node.name}/condition"), ir.DataType.BOOL, []))
    for place in places[: loop.carried]:
        inputs.append(body.bind(place, ir.val(body.unique(f"{node.name}/{place.name}"))))
    for place, given in zip(places[loop.carried :], fixed, strict=True):
        body.bind(place, outer.value(given))
    outputs = [
        body.output(result, body.unique(f"{node.name}/next_{place.name}"))
        for result, place in zip(_write_nodes(loop.body, body), places, strict=False)
    ]
    go_on = ir.node("Identity", [inputs[1]], name=body.unique(f"{node.name}/go_on"))
    body.nodes.append(go_on)
    (condition,) = go_on.outputs
    condition.name, condition.dtype, condition.shape = go_on.name, ir.DataType.BOOL, ir.Shape([])
    graph = _graph(body, inputs, [condition, *outputs], f"{node.name}/body")
    states = outer.loop(node, graph, [rounds, *carried])
    for item in node.users:
        outer.bind(item, states[cast(int, item.args[1])])


def _graph(
    builder: OnnxBuilder, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], name: str
) -> ir.Graph:
    return ir.Graph(
        inputs,
        outputs,
        nodes=builder.nodes,
        initializers=builder.initializers,
        opset_imports={"": OPSET},
        name=name,
    )
