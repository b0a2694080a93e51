"""Repeating, rolling, and constants as many times as there are pictures: `expand`, `cat` and slices say it all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, parameter, shape, static_shape, value
from sptrace.compiler.graph.facts import Target
from sptrace.compiler.graph.sizes import BatchSize, Size, joint

aten = torch.ops.aten


def canonicalize_copies(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. repeat(x, times), tile                ->  expand of x with a dimension before each that is repeated, reshape
    2. repeat_interleave(x, n, dim)          ->  the same with the dimension behind
    3. roll(x, shifts, dims)                 ->  cat of the end and the beginning
    4. reshape_as(x, y), view_as             ->  reshape(x, the shape of y)
    5. zeros([n, 3]), ones, full, zeros_like, fill(x, 0) ... ->  expand(constant, [n, 3]), n the batch size
    6. masked_fill(x, mask, number)          ->  where(mask, number, x)
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in REWRITES:
            continue
        with builder.replacing(node):
            builder.replace(node, REWRITES[node.target](builder, node, *node.args, **node.kwargs))
        count += 1
    return count


def _repeat(builder: GraphBuilder, node: fx.Node, x: fx.Node, times: Sequence[int | fx.Node]) -> fx.Node:
    sizes: list[Size] = [*[1] * (value(node).ndim - value(x).ndim), *shape(x)]
    times = [1] * (len(sizes) - len(times)) + list(times)
    apart: list[Size] = []
    wanted: list[int | fx.Node] = []
    for size, count in zip(sizes, times, strict=True):
        if count != 1:
            apart.append(1)
            wanted.append(count)
        apart.append(size)
        wanted.append(-1)
    return builder.reshape(builder.call(aten.expand.default, builder.reshape(x, apart), wanted), shape(node))


def _repeat_interleave(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, times: int, dim: int | None = None, **_: Any
) -> fx.Node:
    sizes = shape(x)
    assert dim is not None or len(sizes) == 1, "repeat_interleave of a flattened tensor"
    at = (dim or 0) % len(sizes)
    apart = builder.reshape(x, [*sizes[: at + 1], 1, *sizes[at + 1 :]])
    wanted = [-1] * (at + 1) + [times] + [-1] * (len(sizes) - at - 1)
    return builder.reshape(builder.call(aten.expand.default, apart, wanted), shape(node))


def _roll(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, shifts: Sequence[int], dims: Sequence[int] = ()
) -> fx.Node:
    if not dims:
        flat = _roll(builder, node, builder.reshape(x, [joint(shape(x))]), shifts, [0])
        return builder.reshape(flat, shape(x))
    for shift, dim in zip(shifts, dims, strict=True):
        (size,) = static_shape(x, [dim])
        if shift % size:
            start = size - shift % size
            parts = [
                builder.call(aten.slice.Tensor, x, dim, *stretch) for stretch in ((start, size), (0, start))
            ]
            x = builder.call(aten.cat.default, parts, dim)
    return x


def _shaped_as(builder: GraphBuilder, node: fx.Node, x: fx.Node, other: fx.Node) -> fx.Node:
    return builder.reshape(x, shape(node))


def _filled(number: float) -> Callable[..., fx.Node]:
    return lambda builder, node, *args, **kwargs: _expanded(builder, node, number)


def _full(
    builder: GraphBuilder, node: fx.Node, sizes: object, number: float, *_: object, **options: object
) -> fx.Node:
    return _expanded(builder, node, number)


def _new_full(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, sizes: object, number: float, **options: object
) -> fx.Node:
    return _expanded(builder, node, number)


def _fill(builder: GraphBuilder, node: fx.Node, x: fx.Node, number: float) -> fx.Node:
    return _expanded(builder, node, number)


def _expanded(builder: GraphBuilder, node: fx.Node, number: float) -> fx.Node:
    sizes = [1 if isinstance(size, BatchSize) else size for size in shape(node)]
    constant = torch.full(sizes, number, dtype=value(node).dtype)
    return builder.expand(builder.constant("filled", constant), shape(node))


def fixed(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The numbers of a constant, with a single picture's where it has them for all; None if it is computed."""
    inner = node.args[0] if node.target == aten.expand.default else node
    if not isinstance(inner, fx.Node) or inner.op != "get_attr":
        return None
    return parameter(module, inner).expand(
        [1 if isinstance(size, BatchSize) else size for size in shape(node)]
    )


def _masked_fill(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, mask: fx.Node, number: float | fx.Node
) -> fx.Node:
    if isinstance(number, fx.Node):
        number = float(parameter(builder.module, number))
    return builder.call(aten.where.ScalarSelf, mask, number, x)


REWRITES: dict[Target, Callable[..., fx.Node]] = {
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.roll.default: _roll,
    aten.reshape_as.default: _shaped_as,
    aten.view_as.default: _shaped_as,
    aten.zeros.default: _filled(0),
    aten.ones.default: _filled(1),
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.new_zeros.default: _filled(0),
    aten.new_ones.default: _filled(1),
    aten.full.default: _full,
    aten.new_full.default: _new_full,
    aten.fill.Scalar: _fill,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
}
