"""Reading at fixed places becomes `index_select`; windows become convolutions with weights of 0 and 1."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, is_batch, shape, static_shape, value
from sptrace.compiler.graph.constants import at_batches
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.placing import read
from sptrace.compiler.graph.sizes import BATCH, BATCHES, BatchSize
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_copies import fixed

aten = torch.ops.aten


def canonicalize_indexing(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. index(x, [None, i]) with a constant i         ->  index_select, reshape
    2. index(x, [None, i, j])                        ->  the two as one dimension, the first if they are no neighbours
    3. index(x, [arange(n), i, ...]), n the batch    ->  the same where i is constant, else gather of each picture
    4. index(constant, [i])                          ->  embedding(constant, i)
    5. gather(x, dim, i) with a constant i           ->  index_select of one picture's numbers in a row
    6. diagonal(x, offset, dim1, dim2)               ->  the same
    7. unfold(x, dim, size, step)                    ->  index_select of all windows, reshape
    8. as_strided(x, size, stride) of each picture   ->  the same; of a sequence in frames (STFT) conv1d, transpose
    9. im2col(x, kernel ...)                         ->  conv2d with one output a cell of the kernel
    10. col2im(x, kernel ...)                        ->  conv_transpose2d with the same weights

    Weights of 0 and 1 in place of scattered writes, for which runtimes have slow kernels or none.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target in REWRITES:
            with builder.replacing(node):
                new = REWRITES[node.target](builder, node, *node.args, **node.kwargs)
            if new is not node:
                builder.replace(node, new)
                count += 1
    return count


def _index(builder: GraphBuilder, node: fx.Node, x: fx.Node, given: Sequence[fx.Node | None]) -> fx.Node:
    chosen = {dim: index for dim, index in enumerate(given) if index is not None}
    if list(chosen) == [0] and x.op == "get_attr":
        return builder.call(aten.embedding.default, x, chosen[0])
    if 0 in chosen and _numbers_pictures(builder, chosen[0], node):
        del chosen[0]
        if not chosen:
            return builder.reshape(x, shape(node))
        if any(fixed(builder.module, index) is None for index in chosen.values()):
            return _index_of_each(builder, node, x, chosen)
    places = {dim: fixed(builder.module, index) for dim, index in chosen.items()}
    known = {dim: place for dim, place in places.items() if place is not None}
    if len(known) < len(places) or any(isinstance(shape(x)[dim], BatchSize) for dim in places):
        where = facts(node).source
        raise UnsupportedError(
            f"{node.target} ({where}) reads at places computed from the image, or along the batch: use constant "
            "indices, torch.gather, or x[torch.arange(x.shape[0]), places]"
        )
    return _index_of_all(builder, node, x, known)


def _numbers_pictures(builder: GraphBuilder, index: fx.Node, node: fx.Node) -> bool:
    """Is it 0, 1, 2 ... for the pictures of a batch, along the first dimension of what is read?"""
    found = at_batches(builder.module, index)
    return found is not None and all(
        torch.equal(numbers.flatten(), torch.arange(batch))
        and numbers.ndim <= whole.ndim
        and whole.shape[0] == numbers.shape[0] == batch
        for numbers, whole, batch in zip(found, facts(node).values, BATCHES, strict=True)
    )


def _index_of_all(builder: GraphBuilder, node: fx.Node, x: fx.Node, places: dict[int, Tensor]) -> fx.Node:
    """The same constant places in every picture."""
    dims = list(places)
    joint = torch.zeros((), dtype=torch.int64)
    sizes = static_shape(x, dims)
    for place, size in zip(places.values(), sizes, strict=True):
        joint = joint * size + place % size
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    rest = [dim for dim in range(value(x).ndim) if dim not in dims]
    order = [*rest[:at], *dims, *rest[at:]]
    x = x if order == sorted(order) else builder.call(aten.permute.default, x, order)
    kept = [*shape(x)[:at], torch.Size(sizes).numel(), *shape(x)[at + len(dims) :]]
    return builder.reshape(read(builder, builder.reshape(x, kept), at, joint.flatten()), shape(node))


def _index_of_each(builder: GraphBuilder, node: fx.Node, x: fx.Node, places: dict[int, fx.Node]) -> fx.Node:
    """Places that each picture has for itself: `gather` along the indexed dimensions, made one."""
    dims, rest = list(places), [dim for dim in range(1, value(x).ndim) if dim not in places]
    sizes, kept = static_shape(x, dims), static_shape(x, rest)
    first, *others = places.values()
    joint = first
    for place, size in zip(others, sizes[1:], strict=True):
        wrapped = builder.call(aten.remainder.Scalar, place, size)
        joint = builder.call(aten.add.Tensor, builder.call(aten.mul.Tensor, joint, size), wrapped)
    count = math.prod(static_shape(node, range(1, value(node).ndim - len(rest))))
    flat = builder.reshape(
        builder.call(aten.permute.default, x, [0, *dims, *rest]), [-1, torch.Size(sizes).numel(), *kept]
    )
    column = builder.reshape(joint, [-1, count, *[1] * len(kept)])
    index = builder.call(aten.expand.default, column, [-1, -1, *kept])
    return builder.reshape(builder.call(aten.gather.default, flat, 1, index), shape(node))


def _gather(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, *, sparse_grad: bool = False
) -> fx.Node:
    """At constant places a reading of one picture's numbers in a row."""
    places, dim = fixed(builder.module, index), dim % value(x).ndim
    if places is None or dim == 0 or shape(x)[0] != shape(index)[0]:
        return node
    sizes = static_shape(x, range(1, value(x).ndim))
    numbering = torch.arange(torch.Size(sizes).numel()).reshape(1, *sizes)
    for other, size in enumerate(places.shape):
        if other not in (0, dim):
            numbering = numbering.narrow(other, 0, size)
    flat = builder.reshape(x, [shape(x)[0], torch.Size(sizes).numel()])
    return builder.reshape(read(builder, flat, 1, numbering.gather(dim, places).flatten()), shape(node))


def _diagonal(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, offset: int = 0, dim1: int = 0, dim2: int = 1
) -> fx.Node:
    if 0 in (dim1 % value(x).ndim, dim2 % value(x).ndim):
        raise UnsupportedError("a diagonal along the batch mixes pictures: take it of each alone")
    sizes = static_shape(x, range(1, value(x).ndim))
    numbering = torch.arange(torch.Size(sizes).numel()).reshape(1, *sizes)
    flat = builder.reshape(x, [shape(x)[0], numbering.numel()])
    return builder.reshape(
        read(builder, flat, 1, numbering.diagonal(offset, dim1, dim2).flatten()), shape(node)
    )


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


def _as_strided(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    size: Sequence[int],
    stride: Sequence[int],
    offset: int | None = None,
) -> fx.Node:
    """The cells of each picture's memory by their places; of a sequence cut into frames, by a convolution."""
    given = facts(x).values
    cells = given[0].numel() // BATCHES[0]
    alone = is_batch(x, 0) and is_batch(node, 0) and stride[0] == cells
    if not alone or any(not each.is_contiguous() or each.storage_offset() for each in given):
        return node
    sizes = static_shape(node, range(1, len(size)))
    if len(sizes) == 2 and stride[2] == 1 and not offset:
        frames, length = sizes
        whole = builder.reshape(x, [BATCH, 1, cells])
        read = builder.call(aten.slice.Tensor, whole, 2, 0, (frames - 1) * stride[1] + length)
        kernel = builder.constant("frames.cells", torch.eye(length).unsqueeze(1))
        cut = builder.call(aten.conv1d.default, read, kernel, None, [stride[1]], [0], [1], 1)
        return builder.call(aten.transpose.int, cut, 1, 2)
    places = torch.tensor(offset or 0)
    for length, step in zip(sizes, stride[1:], strict=True):
        places = places.unsqueeze(-1) + step * torch.arange(length)
    if int(places.max()) >= cells:
        return node
    index = builder.constant("memory.places", places.flatten())
    read = builder.call(aten.index_select.default, builder.reshape(x, [BATCH, cells]), 1, index)
    return builder.reshape(read, shape(node))


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
    aten.gather.default: _gather,
    aten.diagonal.default: _diagonal,
    aten.unfold.default: _unfold,
    aten.as_strided.default: _as_strided,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
}
