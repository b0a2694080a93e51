"""Ops that cut a tensor into several become slices and layers, each an op with one result."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value
from sptrace.compiler.graph.facts import Target, facts

aten = ops.aten

SPLITS: set[Target] = {
    aten.split.Tensor,
    aten.split.sizes,
    aten.split_with_sizes.default,
    aten.chunk.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
}


def canonicalize_splits(module: fx.GraphModule) -> int:
    """Rewrite the pieces that are read; returns how many.

    1. getitem(chunk(x, 3, dim), 1), and split and split_with_sizes alike  ->  slice(x, dim, start, end)
    2. getitem(unbind(x, dim), 1)                                          ->  select(x, dim, 1)
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target != operator.getitem or not isinstance(node.args[0], fx.Node):
            continue
        cut, index = node.args
        if cut.target not in SPLITS | {aten.unbind.int}:
            continue
        with builder.replacing(node):
            builder.replace(node, _piece(builder, cut, index, *cut.args, **cut.kwargs))
        count += 1
    if count:
        module.graph.eliminate_dead_code()
    return count


def _piece(
    builder: GraphBuilder, cut: fx.Node, index: int, x: fx.Node, *options: Any, dim: int = 0
) -> fx.Node:
    pieces: Sequence[Tensor] = facts(cut).first
    index %= len(pieces)
    if cut.target == aten.unbind.int:
        return builder.call(aten.select.int, x, options[0] if options else dim, index)
    dim = (options[1] if len(options) > 1 else dim) % value(x).ndim
    static_shape(x, [dim])
    start = sum(piece.shape[dim] for piece in pieces[:index])
    return builder.call(aten.slice.Tensor, x, dim, start, start + pieces[index].shape[dim])
