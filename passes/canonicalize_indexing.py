"""Reading at fixed places becomes `index_select`; windows become convolutions with weights of 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder, Target, parameter, shape, static_shape, value

aten = torch.ops.aten


def canonicalize_indexing(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. index(x, [None, i]) with a constant i, also of several dimensions  ->  index_select, reshape
    2. index(x, [None, i, j]), neighbours                                           ->  the two as one dimension
    3. unfold(x, dim, size, step)                    ->  index_select of all windows, reshape
    4. im2col(x, kernel ...)                         ->  conv2d with one output a cell of the kernel
    5. col2im(x, kernel ...)                         ->  conv_transpose2d with the same weights

    Weights of 0 and 1 in place of scattered writes, for which runtimes have slow kernels or none.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target in REWRITES:
            with builder.replacing(node):
                builder.replace(node, REWRITES[node.target](builder, node, *node.args, **node.kwargs))
            count += 1
    return count


def _index(builder: GraphBuilder, node: fx.Node, x: fx.Node, given: Sequence[fx.Node | None]) -> fx.Node:
    dims = [dim for dim, index in enumerate(given) if index is not None]
    indices = [index for index in given if index is not None]
    if any(index.op != "get_attr" for index in indices) or dims != list(range(dims[0], dims[-1] + 1)):
        where = node.meta.get("source", "source unknown")
        raise UnsupportedError(
            f"{node.target} ({where}) reads at places computed from the image, or in dimensions that are no "
            "neighbours: use constant indices, one after another"
        )
    places = [parameter(builder.module, index) for index in indices]
    sizes = static_shape(x, dims)
    joint = torch.zeros((), dtype=torch.int64)
    for place, size in zip(places, sizes, strict=True):
        joint = joint * size + place % size
    before, after = shape(x)[: dims[0]], shape(x)[dims[-1] + 1 :]
    return _read(builder, node, builder.reshape(x, [*before, math.prod(sizes), *after]), dims[0], joint)


def _read(builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, places: Tensor) -> fx.Node:
    index = builder.constant("reading.index", places.flatten())
    return builder.reshape(builder.call(aten.index_select.default, x, dim, index), shape(node))


def _unfold(builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, size: int, step: int) -> fx.Node:
    """The windows stand at `dim`, their cells last."""
    rank = value(x).ndim
    dim %= rank
    (length,) = static_shape(x, [dim])
    starts = torch.arange(0, length - size + 1, step)
    places = (starts[:, None] + torch.arange(size)).flatten()
    index = builder.constant("reading.index", places)
    sizes = shape(x)
    windows = builder.reshape(
        builder.call(aten.index_select.default, x, dim, index),
        [*sizes[:dim], len(starts), size, *sizes[dim + 1 :]],
    )
    order = [each for each in range(rank + 1) if each != dim + 1] + [dim + 1]
    return builder.call(aten.permute.default, windows, order)


def _im2col(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> fx.Node:
    (channels,) = static_shape(x, [1])
    options = (list(stride), list(padding), list(dilation), channels)
    cells = builder.call(aten.conv2d.default, x, _cells(builder, channels, kernel), None, *options)
    return builder.reshape(cells, shape(node))


def _col2im(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> fx.Node:
    (channels,) = static_shape(node, [1])
    windows = [
        (length + 2 * pad - spread * (cells - 1) - 1) // step + 1
        for length, cells, spread, pad, step in zip(size, kernel, dilation, padding, stride, strict=True)
    ]
    beyond = [
        length - ((count - 1) * step - 2 * pad + spread * (cells - 1) + 1)
        for length, count, cells, spread, pad, step in zip(
            size, windows, kernel, dilation, padding, stride, strict=True
        )
    ]
    picture = builder.reshape(x, [shape(x)[0], channels * kernel[0] * kernel[1], *windows])
    weight = _cells(builder, channels, kernel)
    options = (list(stride), list(padding), beyond, channels, list(dilation))
    return builder.call(aten.conv_transpose2d.input, picture, weight, None, *options)


def _cells(builder: GraphBuilder, channels: int, kernel: Sequence[int]) -> fx.Node:
    """[channels * cells, 1, rows, columns]: output c * cells + i reads cell i of channel c."""
    count = kernel[0] * kernel[1]
    weight = torch.eye(count).reshape(count, 1, *kernel).repeat(channels, 1, 1, 1)
    return builder.constant("windows.cells", weight)


REWRITES: dict[Target, Callable[..., fx.Node]] = {
    aten.index.Tensor: _index,
    aten.unfold.default: _unfold,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
}
