"""Ops under a second name become the op under its first name, the only one that the rules and the emitter know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.facts import Target

aten = ops.aten

SYNONYMS: dict[Target, Target] = {
    aten.clip.default: aten.clamp.default,
    aten.concat.default: aten.cat.default,
    aten.concatenate.default: aten.cat.default,
    aten.divide.Tensor: aten.div.Tensor,
    aten.divide.Scalar: aten.div.Scalar,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.true_divide.Scalar: aten.div.Scalar,
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.multiply.Scalar: aten.mul.Scalar,
    aten.negative.default: aten.neg.default,
    aten._neg_view.default: aten.neg.default,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.subtract.Scalar: aten.sub.Scalar,
    aten.swapaxes.default: aten.transpose.int,
    aten.swapdims.default: aten.transpose.int,
}
"""The same arguments under another name."""

LOGICAL: dict[Target, Target] = {
    aten.bitwise_and.Tensor: aten.logical_and.default,
    aten.__and__.Tensor: aten.logical_and.default,
    aten.__or__.Tensor: aten.logical_or.default,
    aten.bitwise_or.Tensor: aten.logical_or.default,
    aten.bitwise_not.default: aten.logical_not.default,
}
"""Of booleans the same."""


def canonicalize_synonyms(module: fx.GraphModule) -> int:
    """Call ops by their first name; returns how many were renamed.

    1. multiply(x, y), concat([x, y], 1), clip(x, 0, 6) ...  ->  mul(x, y), cat([x, y], 1), clamp(x, 0, 6) ...
    2. expand_as(x, y)                                       ->  expand(x, the shape of y)
    3. narrow(x, dim, start, length)                         ->  slice(x, dim, start, start + length)
    4. numpy_T(x)                                            ->  permute(x, the order of the dimensions)
    5. mT(x)                                                 ->  transpose(x, -2, -1)
    6. copy(x, y), fill(x, y)                                ->  expand(y, the shape of x), in the dtype of x
    7. bitwise_and(x, y) of booleans, or, not                ->  logical_and(x, y), logical_or, logical_not
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        with builder.replacing(node):
            if node.target in SYNONYMS:
                new = builder.call(SYNONYMS[node.target], *node.args, **node.kwargs)
            elif node.target in LOGICAL and value(node).dtype == torch.bool:
                new = builder.call(LOGICAL[node.target], *node.args)
            elif node.target in REWRITES:
                new = REWRITES[node.target](builder, *node.args)
            else:
                continue
            builder.replace(node, new)
        count += 1
    return count


def _expand_as(builder: GraphBuilder, x: fx.Node, other: fx.Node) -> fx.Node:
    return builder.expand(x, shape(other))


def _copy(builder: GraphBuilder, x: fx.Node, source: fx.Node, non_blocking: bool = False) -> fx.Node:
    if value(source).dtype != value(x).dtype:
        source = builder.call(aten.to.dtype, source, value(x).dtype)
    return source if shape(source) == shape(x) else _expand_as(builder, source, x)


def _narrow(builder: GraphBuilder, x: fx.Node, dim: int, start: int, length: int) -> fx.Node:
    if start < 0:  # an end of 0 would not be the end
        start += static_shape(x, [dim])[0]
    return builder.call(aten.slice.Tensor, x, dim, start, start + length)


def _reversed(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    return _permute(builder, x, range(value(x).ndim)[::-1])


def _matrix_transposed(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    return builder.call(aten.transpose.int, x, -2, -1)


def _permute(builder: GraphBuilder, x: fx.Node, order: Sequence[int]) -> fx.Node:
    return builder.call(aten.permute.default, x, list(order))


REWRITES: dict[Target, Callable[..., fx.Node]] = {
    aten.expand_as.default: _expand_as,
    aten.copy.default: _copy,
    aten.fill.Tensor: _copy,
    aten.narrow.default: _narrow,
    aten.numpy_T.default: _reversed,
    aten.mT.default: _matrix_transposed,
}
