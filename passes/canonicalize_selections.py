"""Choosing numbers by their order becomes two steps: the places of the chosen, and `gather` of what stands there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sptrace.compiler.graph import ranking
from sptrace.compiler.graph.builder import GraphBuilder, shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BatchSize
from sptrace.errors import UnsupportedError
from sptrace.passes.rewriting import replace_results

aten = torch.ops.aten


def canonicalize_selections(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. topk(x, k, dim), sort(x, dim), both results        ->  i = places(x, k, dim, largest), gather(x, dim, i)
    2. kthvalue(x, k, dim), median(x, dim)                 ->  the same, of i the last one
    3. argsort(x, dim), msort(x)                           ->  places alone, or values alone
    4. the second result of max(x, dim) and min(x, dim)    ->  argmax(x, dim), argmin(x, dim)
    5. one_hot(i, classes)                                 ->  i == 0, 1, 2 ... as whole numbers

    Of numbers that are equal the first counts as chosen first. PyTorch promises that for a stable sort alone.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target in PAIRS:
            with builder.replacing(node):
                count += _replace_pair(builder, node)
        elif node.target in REWRITES:
            with builder.replacing(node):
                builder.replace(node, REWRITES[node.target](builder, node, *node.args, **node.kwargs))
            count += 1
    return count


def _replace_pair(builder: GraphBuilder, node: fx.Node) -> bool:
    """The readers of values and places read two nodes; False if that is left to another pass."""
    pair = PAIRS[node.target](builder, node, *node.args, **node.kwargs)  # type: ignore[index]
    replace_results(builder, node, pair)
    if not node.users:
        builder.graph.erase_node(node)
        return True
    return False


def _length(node: fx.Node, x: fx.Node, dim: int) -> int:
    length = shape(x)[dim]
    if isinstance(length, BatchSize):
        where = facts(node).source
        raise UnsupportedError(
            f"{node.target} ({where}) would let one picture's explanation depend on the others of its batch: "
            "order the numbers of each picture alone"
        )
    return length


def _topk(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> tuple[fx.Node, fx.Node]:
    chosen = builder.call(ranking.places, x, k, dim % value(x).ndim, largest)
    return builder.call(aten.gather.default, x, dim % value(x).ndim, chosen), chosen


def _sort(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int = -1, descending: bool = False
) -> tuple[fx.Node, fx.Node]:
    return _topk(builder, node, x, _length(node, x, dim), dim, descending)


def _stable_sort(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    *,
    stable: bool | None = None,
    dim: int = -1,
    descending: bool = False,
) -> tuple[fx.Node, fx.Node]:
    return _sort(builder, node, x, dim, descending)


def _kth(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, k: int, dim: int = -1, keepdim: bool = False
) -> tuple[fx.Node, ...]:
    dim %= value(x).ndim
    chosen = builder.call(ranking.places, x, k, dim, False)
    last = builder.call(aten.slice.Tensor, chosen, dim, k - 1, k)
    pair = builder.call(aten.gather.default, x, dim, last), last
    return pair if keepdim else tuple(builder.call(aten.squeeze.dim, each, dim) for each in pair)


def _median(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int = -1, keepdim: bool = False
) -> tuple[fx.Node, ...]:
    """The lower of two middles."""
    return _kth(builder, node, x, (_length(node, x, dim) + 1) // 2, dim, keepdim)


def _extremum(place: Target) -> Callable[..., tuple[None, fx.Node]]:
    def rewrite(
        builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False
    ) -> tuple[None, fx.Node]:
        return None, builder.call(place, x, dim, keepdim)

    return rewrite


def _argsort(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int = -1, descending: bool = False
) -> fx.Node:
    return _sort(builder, node, x, dim, descending)[1]


def _stable_argsort(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, *, stable: bool, dim: int = -1, descending: bool = False
) -> fx.Node:
    return _argsort(builder, node, x, dim, descending)


def _msort(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return _sort(builder, node, x, 0)[0]


def _one_hot(builder: GraphBuilder, node: fx.Node, index: fx.Node, classes: int = -1) -> fx.Node:
    numbers = builder.constant("one_hot.classes", torch.arange(value(node).shape[-1]))
    column = builder.call(aten.unsqueeze.default, index, value(index).ndim)
    return builder.call(aten.to.dtype, builder.call(aten.eq.Tensor, column, numbers), torch.int64)


PAIRS: dict[Target, Callable[..., tuple[fx.Node | None, ...]]] = {
    aten.topk.default: _topk,
    aten.sort.default: _sort,
    aten.sort.stable: _stable_sort,
    aten.kthvalue.default: _kth,
    aten.median.dim: _median,
    aten.max.dim: _extremum(aten.argmax.default),
    aten.min.dim: _extremum(aten.argmin.default),
}

REWRITES: dict[Target, Callable[..., Any]] = {
    aten.argsort.default: _argsort,
    aten.argsort.stable: _stable_argsort,
    aten.msort.default: _msort,
    aten.one_hot.default: _one_hot,
}
