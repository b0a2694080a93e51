"""Ops that move numbers without changing them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import Input, OnnxBuilder, emits
from sptrace.compiler.graph.builder import aten, shape, static_shape, value
from sptrace.compiler.graph.sizes import literal

INT64_MIN = np.iinfo(np.int64).min


@emits(aten.reshape.default)
def reshape(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, sizes: Sequence[int]) -> ir.Value:
    """Reshape; -1 stands for the size that depends on the batch."""
    return onnx.op("Reshape", x, onnx.integers(literal(shape(node))))


@emits(aten.unsqueeze.default)
def unsqueeze(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int) -> ir.Value:
    """Unsqueeze."""
    return onnx.op("Unsqueeze", x, onnx.integers([dim]))


@emits(aten.squeeze.dim)
def squeeze(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int) -> ir.Value:
    """Squeeze; where the size is not 1 there is nothing to do."""
    return onnx.op("Squeeze", x, onnx.integers([dim])) if shape(x)[dim] == 1 else onnx.op("Identity", x)


@emits(aten.expand.default)
def expand(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, sizes: Sequence[int]) -> ir.Value:
    """Expand, in which a 1 leaves a dimension as it is. A constant is expanded to as many pictures as there are."""
    target, given = shape(node), shape(x)
    given = [*[1] * (len(target) - len(given)), *given]
    wanted = [
        1 if size == before else onnx.size(node, size) for size, before in zip(target, given, strict=True)
    ]
    numbers = [size for size in wanted if isinstance(size, int)]
    if len(numbers) == len(wanted):
        return onnx.op("Expand", x, onnx.integers(numbers))
    pieces = [onnx.integers([size]) if isinstance(size, int) else size for size in wanted]
    return onnx.op("Expand", x, onnx.op("Concat", *pieces, axis=0))


@emits(aten.permute.default)
def permute(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> ir.Value:
    """Transpose."""
    return onnx.op("Transpose", x, perm=[dim % len(dims) for dim in dims])


@emits(aten.transpose.int)
def transpose(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, first: int, second: int) -> ir.Value:
    """Transpose of two dimensions."""
    order = list(range(value(x).ndim))
    order[first], order[second] = order[second], order[first]
    return onnx.op("Transpose", x, perm=order)


@emits(aten.t.default)
def t(onnx: OnnxBuilder, node: fx.Node, x: fx.Node) -> ir.Value:
    """Transpose of a matrix."""
    return onnx.op("Transpose", x, perm=[1, 0])


@emits(aten.cat.default)
def cat(onnx: OnnxBuilder, node: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> ir.Value:
    """Concat."""
    return onnx.op("Concat", *tensors, axis=dim)


@emits(aten.stack.default)
def stack(onnx: OnnxBuilder, node: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> ir.Value:
    """Unsqueeze each, then Concat."""
    layers = [onnx.op("Unsqueeze", tensor, onnx.integers([dim])) for tensor in tensors]
    return onnx.op("Concat", *layers, axis=dim)


@emits(aten.select.int)
def select(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, index: int) -> ir.Value:
    """Gather of one layer."""
    return onnx.op("Gather", x, np.array(index, dtype=np.int64), axis=dim)


@emits(aten.slice.Tensor)
def slice_(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> ir.Value:
    """Slice."""
    stop = np.iinfo(np.int64).max if end is None else end
    return _slice(onnx, x, [start or 0], [stop], [dim], [step])


@emits(aten.flip.default)
def flip(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int]) -> ir.Value:
    """Slice that walks backwards."""
    return _slice(onnx, x, [-1] * len(dims), [INT64_MIN] * len(dims), list(dims), [-1] * len(dims))


@emits(aten.constant_pad_nd.default)
def constant_pad(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, padding: Sequence[int], fill: float = 0.0
) -> ir.Value:
    """Pad where the widths are positive, Slice where they are negative (not every provider's Pad crops)."""
    rank = value(x).ndim
    # torch lists (before, after) from the last dimension on; ONNX all befores, then all afters.
    before, after = [0] * rank, [0] * rank
    for index, width in enumerate(padding):
        (after if index % 2 else before)[rank - 1 - index // 2] = width
    result: Input = x
    cropped = [dim for dim in range(rank) if before[dim] < 0 or after[dim] < 0]
    if cropped:
        sizes = static_shape(x, cropped)
        starts = [max(0, -before[dim]) for dim in cropped]
        ends = [size - max(0, -after[dim]) for size, dim in zip(sizes, cropped, strict=True)]
        result = _slice(onnx, x, starts, ends, cropped, [1] * len(cropped))
    widths = [max(0, width) for width in [*before, *after]]
    if any(widths) or not cropped:
        result = onnx.op("Pad", result, onnx.integers(widths), onnx.operand(fill, value(x).dtype))
    assert isinstance(result, ir.Value)
    return result


def _slice(
    onnx: OnnxBuilder, x: Input, starts: list[int], ends: list[int], axes: list[int], steps: list[int]
) -> ir.Value:
    return onnx.op("Slice", x, *(onnx.integers(numbers) for numbers in (starts, ends, axes, steps)))
