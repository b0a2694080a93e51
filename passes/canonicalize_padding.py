"""Padding becomes `constant_pad_nd`, slices, `flip` and `cat`, the forms that the rules and the emitter know."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value

aten = ops.aten


def canonicalize_padding(module: fx.GraphModule) -> int:
    """Rewrite padding ops; returns how many.

    1. pad(x, widths), mode "constant", all widths 0  ->  nothing
    2. pad(x, widths), mode "constant"                ->  constant_pad_nd(x, widths, number)
    3. pad(x, widths), mode "circular"                ->  cat of the end of x, x and its beginning, per dimension
    4. pad(x, widths), mode "reflect"                 ->  the same with cells mirrored at the border cell
    5. pad(x, widths), mode "replicate"               ->  the same with copies of the border cell

    A negative width crops: "circular" wraps what is left, the other modes crop after padding.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target == aten.pad.default:
            with builder.replacing(node):
                builder.replace(node, _padded(builder, *node.args, **node.kwargs))
            count += 1
    return count


def _padded(
    builder: GraphBuilder,
    x: fx.Node,
    widths: Sequence[int],
    mode: str = "constant",
    number: float | None = None,
) -> fx.Node:
    if not any(widths):
        return x
    if mode == "constant":
        return builder.call(aten.constant_pad_nd.default, x, widths, number or 0.0)
    for index in range(len(widths) // 2):
        before, after = widths[2 * index : 2 * index + 2]
        # The widths count from the last dimension.
        x = _extended(builder, x, value(x).ndim - 1 - index, before, after, mode)
    return x


def _extended(builder: GraphBuilder, x: fx.Node, dim: int, before: int, after: int, mode: str) -> fx.Node:
    """`x` with `before` and `after` more cells along `dim`."""
    kept = _cropped(builder, x, dim, before, after)
    source = kept if mode == "circular" else x
    parts = [kept]
    if before > 0:
        parts.insert(0, _border(builder, source, dim, before, True, mode))
    if after > 0:
        parts.append(_border(builder, source, dim, after, False, mode))
    return builder.call(aten.cat.default, parts, dim) if len(parts) > 1 else kept


def _cropped(builder: GraphBuilder, x: fx.Node, dim: int, before: int, after: int) -> fx.Node:
    (size,) = static_shape(x, [dim])
    start, end = max(0, -before), size - max(0, -after)
    return x if (start, end) == (0, size) else _between(builder, x, dim, start, end)


def _border(builder: GraphBuilder, x: fx.Node, dim: int, width: int, leading: bool, mode: str) -> fx.Node:
    """The `width` cells that stand before `x`, or after it."""
    (size,) = static_shape(x, [dim])
    if mode == "circular":
        return _between(builder, x, dim, *((size - width, size) if leading else (0, width)))
    if mode == "reflect":
        # The border cell itself is not repeated.
        near = (1, width + 1) if leading else (size - 1 - width, size - 1)
        return builder.call(aten.flip.default, _between(builder, x, dim, *near), [dim])
    cell = _between(builder, x, dim, *((0, 1) if leading else (size - 1, size)))
    sizes = [width if other == dim else -1 for other in range(value(x).ndim)]
    return builder.call(aten.expand.default, cell, sizes)


def _between(builder: GraphBuilder, x: fx.Node, dim: int, start: int, end: int) -> fx.Node:
    return builder.call(aten.slice.Tensor, x, dim, start, end)
