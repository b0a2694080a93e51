"""Ops whose result is a part of their input's memory, and how such a part is put back into the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, value
from sptrace.compiler.graph.facts import Target
from sptrace.compiler.graph.sizes import BatchSize

aten = torch.ops.aten

PERMUTATIONS = (
    aten.transpose.int,
    aten.permute.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.movedim.int,
    aten.movedim.intlist,
    aten.moveaxis.int,
    aten.t.default,
    aten.numpy_T.default,
    aten.mT.default,
)
RESHAPES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
}
"""They give numbers another shape, in the same order."""

ALIASES = (
    aten.alias.default,
    aten.view_as.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.expand.default,
    aten.expand_as.default,
    aten.lift_fresh.default,
)
"""What may give its very input. Not `detach`: of what is written through that, autograd does not know."""


def put_back(builder: GraphBuilder, view: fx.Node, base: fx.Node, part: fx.Node) -> fx.Node | None:
    """`base` with `part` in the place that `view` shows of it; None where that is not covered.

    Arguments:
        builder: adds what that takes.
        view: a call of a view op; its first argument is `base`, or what that was before.
        base: what the view shows a part of, as it is now.
        part: of the view's shape.
    """
    rule = PUT_BACK.get(view.target)  # type: ignore[arg-type]
    return None if rule is None else rule(builder, view, base, part, *view.args[1:], **view.kwargs)


def _in_slice(
    builder: GraphBuilder,
    view: fx.Node,
    x: fx.Node,
    part: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> fx.Node | None:
    if shape(part) == shape(x):
        return part
    size = shape(x)[dim]
    if isinstance(size, BatchSize):
        return None
    if step != 1:
        return builder.call(aten.slice_scatter.default, x, part, dim, start, end, step)
    first, last, _ = slice(start, end).indices(size)
    around = [(0, first), (first, last), (last, size)]
    pieces = [
        part if stretch == (first, last) else builder.call(aten.slice.Tensor, x, dim, *stretch)
        for stretch in around
        if stretch[0] < stretch[1]
    ]
    return builder.call(aten.cat.default, pieces, dim)


def _in_narrow(
    builder: GraphBuilder, view: fx.Node, x: fx.Node, part: fx.Node, dim: int, start: int, length: int
) -> fx.Node | None:
    size = shape(x)[dim]
    if isinstance(size, BatchSize):
        return None
    start %= size
    return _in_slice(builder, view, x, part, dim, start, start + length)


def _in_layer(
    builder: GraphBuilder, view: fx.Node, x: fx.Node, part: fx.Node, dim: int, index: int
) -> fx.Node | None:
    size, dim = shape(x)[dim], dim % value(x).ndim
    if isinstance(size, BatchSize):
        return None
    index %= size
    return _in_slice(builder, view, x, builder.call(aten.unsqueeze.default, part, dim), dim, index, index + 1)


def _in_diagonal(
    builder: GraphBuilder, view: fx.Node, x: fx.Node, part: fx.Node, *options: Any, **named: Any
) -> fx.Node:
    return builder.call(aten.diagonal_scatter.default, x, part, *options, **named)


def _in_permutation(
    builder: GraphBuilder, view: fx.Node, x: fx.Node, part: fx.Node, *options: Any, **named: Any
) -> fx.Node:
    numbered = torch.empty(tuple(range(1, value(x).ndim + 1)), device="meta")
    assert callable(view.target)
    order = [size - 1 for size in view.target(numbered, *options, **named).shape]
    return builder.call(aten.permute.default, part, [order.index(dim) for dim in range(len(order))])


def _in_shape(
    builder: GraphBuilder, view: fx.Node, x: fx.Node, part: fx.Node, *options: Any, **named: Any
) -> fx.Node:
    return builder.reshape(part, shape(x))


def _as_it_is(
    builder: GraphBuilder, view: fx.Node, x: fx.Node, part: fx.Node, *options: Any, **named: Any
) -> fx.Node | None:
    return part if shape(part) == shape(x) and value(part).dtype == value(x).dtype else None


PUT_BACK: dict[Target, Callable[..., fx.Node | None]] = {
    aten.slice.Tensor: _in_slice,
    aten.narrow.default: _in_narrow,
    aten.select.int: _in_layer,
    aten.diagonal.default: _in_diagonal,
    **dict.fromkeys(PERMUTATIONS, _in_permutation),
    **dict.fromkeys(RESHAPES, _in_shape),
    **dict.fromkeys(ALIASES, _as_it_is),
}
"""By the view's op."""
