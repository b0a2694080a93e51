"""Writing at fixed places becomes reading at fixed places, and masks become `where`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.placing import put, read
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_copies import fixed
from sptrace.passes.rewriting import Rewrite, rewrite_by

aten = torch.ops.aten


def canonicalize_scatters(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. index_copy(x, dim, i, y), slice_scatter, select_scatter, diagonal_scatter, scatter(x, dim, i, y), index_put,
       i constant                                  ->  index_select(cat([x, y]), where each number now stands)
    2. scatter_add, index_add, scatter_reduce "sum", index_put that accumulates, i constant
                                                   ->  x + what falls on each place
    3. scatter(x, dim, i, number), index_fill      ->  where(mask, number, x)
    4. index_put(x, [mask], number)                ->  where(mask, number, x), also for masks made of the image
    5. diag_embed(x)                               ->  x and zeros, read where they now stand

    Of several numbers for one place the last stays. Places computed from the image stay what they are, but for
    index_put, which is refused.
    """
    return rewrite_by(REWRITES, module)


def _numbering(x: fx.Node) -> Tensor:
    """The number of each cell of one picture's part of x, int64 [1, ...]."""
    sizes = static_shape(x, range(1, value(x).ndim))
    return torch.arange(torch.Size(sizes).numel()).reshape(1, *sizes)


def _flat(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    """[N, the rest]."""
    return builder.reshape(x, [shape(x)[0], _numbering(x).numel()])


def _overwritten(builder: GraphBuilder, x: fx.Node, y: fx.Node, places: Tensor) -> fx.Node:
    """x with the numbers of y at `places`, both counted in one picture."""
    flat = _flat(builder, x)
    (total,) = static_shape(flat, [1])
    source = torch.arange(total)
    source[places.flatten()] = total + torch.arange(places.numel())
    both = builder.call(aten.cat.default, [flat, _flat(builder, y)], 1)
    return builder.reshape(read(builder, both, 1, source), shape(x))


def _increased(builder: GraphBuilder, x: fx.Node, y: fx.Node, places: Tensor) -> fx.Node:
    """x with the numbers of y added at `places`."""
    flat = _flat(builder, x)
    added = put(builder, _flat(builder, y), 1, places.flatten(), static_shape(flat, [1])[0])
    return builder.reshape(builder.call(aten.add.Tensor, flat, added), shape(x))


def _written(builder: GraphBuilder, x: fx.Node, number: float | fx.Node, places: Tensor) -> fx.Node:
    """x with one number at `places`."""
    mask = torch.zeros_like(_numbering(x), dtype=torch.bool)
    mask.view(-1)[places.flatten()] = True
    return _where(builder, builder.constant("writing.mask", mask), number, x)


def _where(builder: GraphBuilder, mask: fx.Node, number: float | fx.Node, x: fx.Node) -> fx.Node:
    if isinstance(number, fx.Node):
        return builder.call(aten.where.self, mask, number, x)
    return builder.call(aten.where.ScalarSelf, mask, number, x)


def _scattered_places(x: fx.Node, dim: int, index: fx.Node, builder: GraphBuilder) -> Tensor | None:
    """Where `scatter` writes, in the numbering of one picture; None if that depends on the image."""
    found = fixed(builder.module, index)
    dim %= value(x).ndim
    if found is None or dim == 0 or shape(x)[0] != shape(index)[0]:
        return None
    numbering = _numbering(x)
    for other, size in enumerate(found.shape):
        if other not in (0, dim):
            numbering = numbering.narrow(other, 0, size)
    return numbering.gather(dim, found)


def _cut(builder: GraphBuilder, y: fx.Node, like: fx.Node) -> fx.Node:
    """As much of y as there are places."""
    for dim, (size, wanted) in enumerate(zip(shape(y), shape(like), strict=True)):
        if size != wanted:
            y = builder.call(aten.slice.Tensor, y, dim, 0, wanted)
    return y


def _scatter(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, y: fx.Node
) -> fx.Node | None:
    y, places = _cut(builder, y, index), _scattered_places(x, dim, index, builder)
    if places is None:
        return builder.call(aten.scatter.src, x, dim, index, y) if y is not node.args[3] else None
    return _overwritten(builder, x, y, places)


def _scatter_number(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, number: float
) -> fx.Node | None:
    places = _scattered_places(x, dim, index, builder)
    return None if places is None else _written(builder, x, number, places)


def _scatter_add(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, y: fx.Node
) -> fx.Node | None:
    y, places = _cut(builder, y, index), _scattered_places(x, dim, index, builder)
    if places is None:
        return builder.call(aten.scatter_add.default, x, dim, index, y) if y is not node.args[3] else None
    return _increased(builder, x, y, places)


def _scatter_reduce(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    dim: int,
    index: fx.Node,
    y: fx.Node,
    reduce: str,
    *,
    include_self: bool = True,
) -> fx.Node | None:
    if reduce != "sum" or not include_self:
        raise UnsupportedError(
            f"scatter_reduce {reduce!r} {'' if include_self else 'without self '}({_source(node)}) has no pullback: "
            'use "sum", or another op'
        )
    new = _scatter_add(builder, node, x, dim, index, y)
    return builder.call(aten.scatter_add.default, x, dim, index, y) if new is None else new


def _along(builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Tensor:
    """Where index_copy, index_add and index_fill write, in the numbering of one picture."""
    found = fixed(builder.module, index)
    if found is None or dim % value(x).ndim == 0:
        raise UnsupportedError(
            f"{node.target} ({_source(node)}) writes at places computed from the image, or along the batch: "
            "use constant indices in another dimension"
        )
    return _numbering(x).index_select(dim, found.reshape(-1))


def _index_copy(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, y: fx.Node
) -> fx.Node:
    return _overwritten(builder, x, y, _along(builder, node, x, dim, index))


def _index_add(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    dim: int,
    index: fx.Node,
    y: fx.Node,
    *,
    alpha: float = 1,
) -> fx.Node:
    scaled = y if alpha == 1 else builder.call(aten.mul.Tensor, y, alpha)
    return _increased(builder, x, scaled, _along(builder, node, x, dim, index))


def _index_fill(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node, number: float | fx.Node
) -> fx.Node:
    return _written(builder, x, number, _along(builder, node, x, dim, index))


def _slice_scatter(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    y: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> fx.Node:
    if shape(y) == shape(x):
        return y
    _require_pictures(node, x, dim)
    stretch = range(static_shape(x, [dim])[0])[start:end:step]
    return _overwritten(builder, x, y, _numbering(x).index_select(dim, torch.tensor(list(stretch))))


def _select_scatter(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, y: fx.Node, dim: int, index: int
) -> fx.Node:
    _require_pictures(node, x, dim)
    return _overwritten(builder, x, y, _numbering(x).select(dim, index))


def _diagonal_scatter(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    y: fx.Node,
    offset: int = 0,
    dim1: int = 0,
    dim2: int = 1,
) -> fx.Node:
    _require_pictures(node, x, dim1, dim2)
    return _overwritten(builder, x, y, _numbering(x).diagonal(offset, dim1, dim2))


def _diag_embed(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, offset: int = 0, dim1: int = -2, dim2: int = -1
) -> fx.Node:
    _require_pictures(node, node, dim1, dim2)
    places = _numbering(node).diagonal(offset, dim1, dim2)
    return builder.reshape(
        put(builder, _flat(builder, x), 1, places.flatten(), _numbering(node).numel()), shape(node)
    )


def _index_put(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    given: Sequence[fx.Node | None],
    y: fx.Node,
    accumulate: bool = False,
) -> fx.Node:
    indices = [(dim, index) for dim, index in enumerate(given) if index is not None]
    if len(indices) == 1 and value(indices[0][1]).dtype == torch.bool:
        dim, mask = indices[0]
        if value(y).numel() == 1 and not accumulate:
            behind = value(x).ndim - dim - value(mask).ndim
            aligned = builder.reshape(mask, [*shape(mask), *[1] * behind]) if behind else mask
            return builder.call(aten.where.self, aligned, builder.reshape(y, []), x)
    found = {dim: fixed(builder.module, index) for dim, index in indices}
    if None in found.values() or 0 in found:
        raise UnsupportedError(
            f"{node.target} ({_source(node)}) writes at places computed from the image, or along the batch: "
            "use constant indices, torch.where, or scatter"
        )
    places = _numbering(x)[tuple(found.get(dim, slice(None)) for dim in range(len(given)))]
    if value(y).numel() == 1 and not accumulate:
        return _written(builder, x, builder.reshape(y, []), places)
    y = builder.expand(y, [shape(x)[0], *places.shape[1:]])
    return (_increased if accumulate else _overwritten)(builder, x, y, places)


def _require_pictures(node: fx.Node, x: fx.Node, *dims: int) -> None:
    """Refuse to work along the batch."""
    if 0 in [dim % value(x).ndim for dim in dims]:
        raise UnsupportedError(
            f"{node.target} ({_source(node)}) works along the batch: explain each picture alone"
        )


def _source(node: fx.Node) -> str:
    return str(facts(node).source)


REWRITES: dict[Target, Rewrite] = {
    aten.scatter.src: _scatter,
    aten.scatter.value: _scatter_number,
    aten.scatter_add.default: _scatter_add,
    aten.scatter_reduce.two: _scatter_reduce,
    aten.index_copy.default: _index_copy,
    aten.index_add.default: _index_add,
    aten.index_fill.int_Scalar: _index_fill,
    aten.index_fill.int_Tensor: _index_fill,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.diagonal_scatter.default: _diagonal_scatter,
    aten.diag_embed.default: _diag_embed,
    aten.index_put.default: _index_put,
}
