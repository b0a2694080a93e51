"""Finding numbers by their order, and reading and writing at places that were found so."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import OnnxBuilder, emits
from sptrace.compiler.graph import ranking
from sptrace.compiler.graph.builder import aten, value


@emits(ranking.places)
def places(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, k: int, dim: int, largest: bool) -> ir.Value:
    """The second output of TopK; of equal numbers it takes the first, as ONNX has it."""
    _, found = onnx.outputs_of("TopK", 2, x, onnx.integers([k]), axis=dim, largest=int(largest), sorted=1)
    return found


@emits(aten.argmin.default)
def argmin(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False) -> ir.Value:
    """ArgMin."""
    return onnx.op("ArgMin", x, axis=dim, keepdims=int(keepdim))


@emits(aten.embedding.default)
def embedding(
    onnx: OnnxBuilder, node: fx.Node, weight: fx.Node, index: fx.Node, *options: object
) -> ir.Value:
    """Gather of rows."""
    return onnx.op("Gather", weight, index, axis=0)


@emits(aten.gather.default)
def gather(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> ir.Value:
    """GatherElements."""
    return onnx.op("GatherElements", x, index, axis=dim)


@emits(aten.scatter.src)
def scatter(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, y: fx.Node) -> ir.Value:
    """ScatterElements."""
    return onnx.op("ScatterElements", x, index, y, axis=dim)


@emits(aten.scatter.value)
def scatter_number(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, number: float
) -> ir.Value:
    """ScatterElements of one number."""
    y = onnx.op("Expand", onnx.operand(number, value(x).dtype), onnx.op("Shape", index))
    return onnx.op("ScatterElements", x, index, y, axis=dim)


@emits(aten.scatter_add.default)
def scatter_add(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, y: fx.Node
) -> ir.Value:
    """ScatterElements that adds."""
    return onnx.op("ScatterElements", x, index, y, axis=dim, reduction="add")
