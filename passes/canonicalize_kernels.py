"""Convolutions of each picture with kernels of its own become products with matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BATCH, BATCHES, BatchSize
from sptrace.passes.rewriting import rewrite_by

aten = ops.aten


def canonicalize_kernels(module: fx.GraphModule) -> int:
    """Rewrite convolutions that have the pictures among their channels, a group or several for each; returns how many.

    That is how kernels which depend on the picture are applied: CondConv, dynamic filters, cross-correlations.

    1. conv2d(x [1, N C, H, W], w [N O, C / g, kh, kw], b, ..., groups N g)
       ->  w [N, g, O / g, C / g kh kw] @ im2col(x [N, C, H, W]) [N, g, C / g kh kw, L]  + b
    2. conv_transpose2d(x [1, N C, H, W], w [N C, O / g, kh, kw], b, ..., groups N g)
       ->  col2im(w [N, g, O / g kh kw, C / g] @ x [N, g, C / g, H W])  + b
    3. conv1d  ->  the same with a height of 1
    """
    return rewrite_by(REWRITES, module)


def _groups(x: fx.Node, groups: object) -> int | None:
    """How many groups a picture has; None where pictures are no channels."""
    if shape(x)[0] != 1 or not isinstance(shape(x)[1], BatchSize) or not isinstance(groups, fx.Node):
        return None
    count: int = facts(groups).first // BATCHES[0]
    return count


def _each(x: fx.Node, dim: int) -> int:
    size = shape(x)[dim]
    assert isinstance(size, BatchSize)
    return size.each


def _convolution(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: fx.Node | int = 1,
) -> fx.Node | None:
    count = _groups(x, groups)
    if count is None:
        return None
    fill = [1] * (4 - len(shape(x)))  # the height of a row
    inputs, *kernel = static_shape(weight, range(1, len(shape(weight))))
    channels, *sizes = _each(x, 1), *static_shape(x, range(2, len(shape(x))))
    window = [*fill, *kernel]
    picture = builder.reshape(x, [BATCH, channels, *fill, *sizes])
    zeros = [0] * len(fill)
    options = (
        [*fill, *_per_dimension(dilation, kernel)],
        [*zeros, *_per_dimension(padding, kernel)],
        [*fill, *_per_dimension(stride, kernel)],
    )
    columns = builder.call(aten.im2col.default, picture, window, *options)
    cells = inputs * math.prod(window)
    (places,) = static_shape(columns, [2])
    apart = builder.reshape(columns, [BATCH, count, cells, places])
    matrix = builder.reshape(weight, [BATCH, count, _each(weight, 0) // count, cells])
    product = builder.call(aten.matmul.default, matrix, apart)
    return _with_bias(builder, builder.reshape(product, shape(node)), bias)


def _transposed(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: fx.Node | int = 1,
    dilation: Sequence[int] = (1,),
) -> fx.Node | None:
    count = _groups(x, groups)
    if count is None:
        return None
    outputs, *kernel = static_shape(weight, [1, 2, 3])
    channels, places = _each(x, 1), math.prod(static_shape(x, [2, 3]))
    cells = outputs * math.prod(kernel)
    picture = builder.reshape(x, [BATCH, count, channels // count, places])
    matrix = builder.reshape(weight, [BATCH, count, channels // count, cells])
    turned = builder.call(aten.transpose.int, matrix, 2, 3)
    columns = builder.reshape(
        builder.call(aten.matmul.default, turned, picture), [BATCH, count * cells, places]
    )
    options = (_per_dimension(option, kernel) for option in (dilation, padding, stride))
    whole = builder.call(aten.col2im.default, columns, static_shape(node, [2, 3]), kernel, *options)
    return _with_bias(builder, builder.reshape(whole, shape(node)), bias)


def _with_bias(builder: GraphBuilder, result: fx.Node, bias: fx.Node | None) -> fx.Node:
    if bias is None:
        return result
    sizes = [1, shape(bias)[0], *[1] * (len(shape(result)) - 2)]
    return builder.call(aten.add.Tensor, result, builder.reshape(bias, sizes))


def _per_dimension(option: Sequence[int], kernel: Sequence[int]) -> list[int]:
    return list(option) * len(kernel) if len(option) == 1 else list(option)


REWRITES: dict[Target, Callable[..., fx.Node | None]] = {
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv_transpose2d.input: _transposed,
}
