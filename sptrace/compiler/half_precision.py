"""Programs in half precision, for GPUs: weights and activations in float16, what needs digits or range in float32.

The pullback is linear in the cotangent that it starts from (positively homogeneous where a gate is guided). So that
cotangent is multiplied by a power of two that puts the largest number of the adjoint near the top of the range, and
the attribution is divided by it in float32: nothing vanishes below 6e-8 that matters.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from sptrace import passes
from sptrace.compiler.assemble import Assembled
from sptrace.compiler.graph.builder import GraphBuilder
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.results import give, results
from sptrace.errors import SptraceError

aten = torch.ops.aten

LARGEST = torch.finfo(torch.float16).max / 16
"""What no number may exceed on the example: other pictures have room for 16 times as much."""


def halve(assembled: Assembled, example: Tensor) -> None:
    """Let the pullback compute in half precision; inputs and outputs stay as they are.

    Arguments:
        assembled: the pullback, in float32; it is changed.
        example: float32 [N, 3, H, W], on which the range of its numbers is measured.

    Raises:
        SptraceError: a number is too large for half precision.
    """
    module = assembled.module
    module.recompile()
    largest = _largest(assembled, example)
    _refuse_large(largest["forward"])
    scale = 2.0 ** math.floor(math.log2(LARGEST / largest["adjoint"])) if largest["adjoint"] else 1.0
    _multiply(module, assembled.cotangent, scale)
    passes.halve(module)
    _divide_outputs(module, scale)
    module.graph.lint()
    module.recompile()


def _refuse_large(largest: float) -> None:
    if not largest <= LARGEST:
        raise SptraceError(
            f"the network computes with numbers up to {largest:.0f}, and half precision ends at 65504: "
            "compile with precision fp32"
        )


def _largest(assembled: Assembled, example: Tensor) -> dict[str, float]:
    """The largest magnitude in the forward pass and in the adjoint of the predicted class, or of a unit direction."""
    given: list[Tensor] = []
    for node in assembled.module.graph.nodes:
        if node.op != "placeholder":
            continue
        if node.target == "image":
            given.append(example)
        elif node.target == "target":
            given.append(torch.full((len(example),), -1))
        elif node.target == "direction":
            units = facts(node).first.shape[1]
            given.append(torch.eye(units)[:1].expand(len(example), -1))
        else:
            given.append(assembled.module.get_buffer(assembled.parameters[node.target][0]))
    measure = _Measure(assembled.module)
    with torch.no_grad():
        measure.run(*given)
    return measure.largest


class _Measure(fx.Interpreter):
    """Runs a graph and notes the largest magnitudes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.largest = {"forward": 0.0, "adjoint": 0.0}

    def run_node(self, node: fx.Node) -> Any:
        """Run it and look at what it gives."""
        result = super().run_node(node)
        if node.op == "call_function" and isinstance(result, Tensor) and result.is_floating_point():
            part = "adjoint" if facts(node).adjoint else "forward"
            if _depends_on_input(node):
                finite = result[result.isfinite()]  # what a max pool is padded with is not
                self.largest[part] = max(self.largest[part], float(finite.abs().max()))
        return result


def _depends_on_input(node: fx.Node) -> bool:
    """Weights that are turned in the graph are no numbers of the adjoint."""
    return any(item.op != "get_attr" for item in node.all_input_nodes)


def _multiply(module: fx.GraphModule, cotangent: fx.Node, scale: float) -> None:
    builder = GraphBuilder(module)
    with module.graph.inserting_before(cotangent.next), builder.origin(cotangent, adjoint=True):
        scaled = builder.call(aten.mul.Tensor, cotangent, scale)
    cotangent.replace_all_uses_with(
        scaled, delete_user_cb=lambda user: user is not scaled and user.op != "output"
    )


def _divide_outputs(module: fx.GraphModule, scale: float) -> None:
    builder, named = GraphBuilder(module), results(module.graph)
    with module.graph.inserting_before(module.graph.output_node()):
        for name in ("attribution", "cotangent"):
            if name in named:
                with builder.origin(named[name], adjoint=True):
                    named[name] = builder.call(aten.mul.Tensor, named[name], 1 / scale)
    give(module.graph, named)
