"""Ops that move numbers without changing them.

Their adjoints move the cotangents back, and add them up where a number was copied.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sptrace.compiler.graph.builder import aten, shape, static_shape, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint


@adjoint(
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
def reshape(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, *new_shape: object) -> Cotangents:
    """The same numbers in another shape."""
    yield x, pull.reshape(v, shape(x))


@adjoint(aten.permute.default)
def permute(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int]) -> Cotangents:
    """y[i_dims] = x[i]: the inverse permutation."""
    order = [dim % len(dims) for dim in dims]
    yield x, pull.call(aten.permute.default, v, [order.index(dim) for dim in range(len(order))])


@adjoint(aten.transpose.int)
def transpose(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, first: int, second: int) -> Cotangents:
    """Its own inverse."""
    yield x, pull.call(aten.transpose.int, v, first, second)


@adjoint(aten.t.default)
def t(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """Its own inverse."""
    yield x, pull.call(aten.t.default, v)


@adjoint(aten.flip.default)
def flip(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int]) -> Cotangents:
    """Its own inverse."""
    pull.sizes(x, dims)
    yield x, pull.call(aten.flip.default, v, dims)


@adjoint(aten.expand.default)
def expand(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, sizes: Sequence[int]) -> Cotangents:
    """Copies: their cotangents are added."""
    yield x, pull.unbroadcast(v, x)


@adjoint(aten.cat.default)
def cat(pull: Pull, v: fx.Node, y: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> Cotangents:
    """Every input gets its own stretch of v."""
    start = 0
    for x in tensors:
        (length,) = pull.sizes(x, [dim])
        if pull.needs(x):
            yield x, pull.call(aten.slice.Tensor, v, dim, start, start + length)
        start += length


@adjoint(aten.stack.default)
def stack(pull: Pull, v: fx.Node, y: fx.Node, tensors: Sequence[fx.Node], dim: int = 0) -> Cotangents:
    """Every input gets its own layer of v."""
    for index, x in enumerate(tensors):
        if pull.needs(x):
            yield x, pull.call(aten.select.int, v, dim, index)


@adjoint(aten.select.int)
def select(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, index: int) -> Cotangents:
    """One layer was read: v stands there, zeros elsewhere."""
    (size,) = pull.sizes(x, [dim])
    layer = pull.call(aten.unsqueeze.default, v, dim % value(x).ndim)
    yield x, _between_zeros(pull, layer, x, dim, index % size, size)


@adjoint(aten.slice.Tensor)
def slice_(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Cotangents:
    """A stretch was read, perhaps every `step`-th of it: v stands there, zeros elsewhere."""
    if shape(x) == shape(y):
        yield x, v  # the slice of everything, also along the batch
        return
    (size,) = pull.sizes(x, [dim])
    first, _, _ = slice(start, end, step).indices(size)
    yield x, _between_zeros(pull, _dilate(pull, v, dim % value(x).ndim, step), x, dim, first, size)


def _dilate(pull: Pull, v: fx.Node, dim: int, step: int) -> fx.Node:
    """step - 1 zeros between neighbours along `dim`."""
    if step == 1:
        return v
    sizes = shape(v)
    (size,) = static_shape(v, [dim])
    apart = _pad(pull, pull.call(aten.unsqueeze.default, v, dim + 1), dim + 1, 0, step - 1)
    length = size * step
    joined = pull.reshape(apart, [*sizes[:dim], length, *sizes[dim + 1 :]])
    return pull.call(aten.slice.Tensor, joined, dim, 0, length - step + 1)


def _between_zeros(pull: Pull, v: fx.Node, x: fx.Node, dim: int, first: int, size: int) -> fx.Node:
    (length,) = static_shape(v, [dim])
    return _pad(pull, v, dim % value(x).ndim, first, size - first - length)


def _pad(pull: Pull, v: fx.Node, dim: int, before: int, after: int) -> fx.Node:
    if before == after == 0:
        return v
    # constant_pad_nd counts from the last dimension.
    padding = [0, 0] * (value(v).ndim - 1 - dim) + [before, after]
    return pull.call(aten.constant_pad_nd.default, v, padding)


@adjoint(aten.constant_pad_nd.default)
def constant_pad(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, padding: Sequence[int], fill: float = 0.0
) -> Cotangents:
    """What fell on the padding is dropped; a negative padding cropped x, so zeros come back there."""
    yield x, pull.call(aten.constant_pad_nd.default, v, [-width for width in padding])
