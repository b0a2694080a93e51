"""The largest and the smallest of numbers come down to `amax`, `first_maximum`, and `maximum` of two tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, value
from sptrace.compiler.graph.facts import Target
from sptrace.passes.rewriting import Rewrite, replace_results, rewrite_by

aten = torch.ops.aten


def canonicalize_extrema(module: fx.GraphModule) -> int:
    """Rewrite; returns how many. They differ in who gets the cotangent where several numbers are equally large.

    1. max(x, dim), min(x, dim), whose values are read  ->  first_maximum(x, dim), -first_maximum(-x, dim)
    2. amin(x, dims), aminmax(x, dim)                   ->  -amax(-x, dims), and amax(x, dims)
    3. max(x, y), min(x, y), fmax, fmin                 ->  maximum(x, y), minimum(x, y)
    """
    return rewrite_by(REWRITES, module)


def _largest(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False
) -> fx.Node | None:
    return values_replaced(builder, node, lambda: builder.call(gates.first_maximum, x, dim, keepdim))


def _smallest(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False
) -> fx.Node | None:
    return values_replaced(
        builder,
        node,
        lambda: _mirrored(builder, x, lambda y: builder.call(gates.first_maximum, y, dim, keepdim)),
    )


def drop_unread(builder: GraphBuilder, node: fx.Node) -> None:
    """Forget those of an op's results that nobody reads."""
    for result in list(node.users):
        if not result.users:
            builder.graph.erase_node(result)


def values_replaced(builder: GraphBuilder, node: fx.Node, make: Callable[[], fx.Node]) -> fx.Node | None:
    """Both results are replaced at their readers, if these read only the values."""
    drop_unread(builder, node)
    if any(user.args[1] != 0 for user in node.users):
        return None
    result = make()
    replace_results(builder, node, [result])
    return result


def _amin(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int] = (), keepdim: bool = False
) -> fx.Node:
    return _mirrored(builder, x, lambda y: builder.call(aten.amax.default, y, list(dims), keepdim))


def _both(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, *, dim: int | None = None, keepdim: bool = False
) -> fx.Node:
    dims = list(range(value(x).ndim)) if dim is None else [dim]
    results = [
        _amin(builder, node, x, dims, keepdim),
        builder.call(aten.amax.default, x, dims, keepdim),
    ]
    replace_results(builder, node, results)
    return results[0]


def _mirrored(builder: GraphBuilder, x: fx.Node, largest: Callable[[fx.Node], fx.Node]) -> fx.Node:
    return builder.call(aten.neg.default, largest(builder.call(aten.neg.default, x)))


def _of_two(target: Target) -> Callable[..., fx.Node]:
    return lambda builder, node, a, b: builder.call(target, a, b)


REWRITES: dict[Target, Rewrite] = {
    aten.max.dim: _largest,
    aten.min.dim: _smallest,
    aten.amin.default: _amin,
    aten.aminmax.default: _both,
    aten.max.other: _of_two(aten.maximum.default),
    aten.min.other: _of_two(aten.minimum.default),
    aten.fmax.default: _of_two(aten.maximum.default),
    aten.fmin.default: _of_two(aten.minimum.default),
}
