"""What is asked of numbers and of masks is said by comparisons, sums, and, or, not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value
from sptrace.compiler.graph.facts import Target
from sptrace.passes.rewriting import Rewrite, rewrite_by

aten = torch.ops.aten

Dims = Sequence[int] | int | None


def canonicalize_conditions(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. isnan(x), isinf, isposinf, isneginf      ->  x != x, abs(x) == infinity, ...
    2. logical_xor(a, b), bitwise_xor           ->  a != b
    3. any(m, dims), all(m, dims)               ->  sum(m) > 0, sum(not m) == 0
    4. count_nonzero(x, dims), sum of a mask    ->  sum(x != 0), a whole number
    5. a product of masks, logical ops of numbers -> and, or, not of masks, x != 0
    6. bucketize(x, bounds), searchsorted       ->  sum(x > bounds), a whole number
    """
    return rewrite_by(REWRITES, module)


def _is_nan(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return builder.call(aten.ne.Tensor, x, x)


def _is_infinite(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return builder.call(aten.eq.Scalar, builder.call(aten.abs.default, x), math.inf)


def _is(number: float) -> Callable[..., fx.Node]:
    return lambda builder, node, x: builder.call(aten.eq.Scalar, x, number)


def mask(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    """Where x is not 0."""
    return x if value(x).dtype == torch.bool else builder.call(aten.ne.Scalar, x, 0)


def _different(builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node | None:
    if value(node).dtype != torch.bool:
        return None
    return builder.call(aten.ne.Tensor, mask(builder, a), mask(builder, b))


def _of_masks(target: Target) -> Callable[..., fx.Node | None]:
    def rewrite(builder: GraphBuilder, node: fx.Node, *given: fx.Node) -> fx.Node | None:
        boolean = [isinstance(x, fx.Node) and value(x).dtype == torch.bool for x in given]
        if value(node).dtype != torch.bool or (all(boolean) and node.target == target):
            return None
        return builder.call(target, *[mask(builder, x) for x in given])

    return rewrite


def how_many(builder: GraphBuilder, found: fx.Node, dims: Dims, keepdim: bool = False) -> fx.Node:
    """The number of True along dims, float32: a sum that all runtimes have."""
    reduced = [dims] if isinstance(dims, int) else list(dims or range(value(found).ndim))
    static_shape(found, reduced)
    ones = builder.call(aten.to.dtype, found, torch.float32)
    return builder.call(aten.sum.dim_IntList, ones, reduced, keepdim)


def _any(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dims: Dims = None, keepdim: bool = False
) -> fx.Node:
    return builder.call(aten.gt.Scalar, how_many(builder, mask(builder, x), dims, keepdim), 0)


def _all(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dims: Dims = None, keepdim: bool = False
) -> fx.Node:
    failing = builder.call(aten.logical_not.default, mask(builder, x))
    return builder.call(aten.eq.Scalar, how_many(builder, failing, dims, keepdim), 0)


def _count(builder: GraphBuilder, node: fx.Node, x: fx.Node, dims: Dims = None) -> fx.Node:
    return builder.call(aten.to.dtype, how_many(builder, mask(builder, x), dims), value(node).dtype)


def _sum(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dims: Dims = None, keepdim: bool = False, **_: Any
) -> fx.Node | None:
    if value(x).dtype != torch.bool:
        return None
    return builder.call(aten.to.dtype, how_many(builder, x, dims, keepdim), value(node).dtype)


def _bucketize(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    bounds: fx.Node,
    *,
    out_int32: bool = False,
    right: bool = False,
) -> fx.Node | None:
    """The number of bounds that x has passed: `right` counts those that it stands on."""
    if value(bounds).ndim != 1:
        return None
    column = builder.call(aten.unsqueeze.default, x, value(x).ndim)
    passed = builder.call(aten.ge.Tensor if right else aten.gt.Tensor, column, bounds)
    return builder.call(aten.to.dtype, how_many(builder, passed, value(passed).ndim - 1), value(node).dtype)


def _search_sorted(
    builder: GraphBuilder,
    node: fx.Node,
    bounds: fx.Node,
    x: fx.Node,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: fx.Node | None = None,
) -> fx.Node | None:
    if sorter is not None:
        return None
    return _bucketize(builder, node, x, bounds, right=right or side == "right")


REWRITES: dict[Target, Rewrite] = {
    aten.isnan.default: _is_nan,
    aten.isinf.default: _is_infinite,
    aten.isposinf.default: _is(math.inf),
    aten.isneginf.default: _is(-math.inf),
    aten.logical_xor.default: _different,
    aten.bitwise_xor.Tensor: _different,
    aten.logical_and.default: _of_masks(aten.logical_and.default),
    aten.logical_or.default: _of_masks(aten.logical_or.default),
    aten.logical_not.default: _of_masks(aten.logical_not.default),
    aten.mul.Tensor: _of_masks(aten.logical_and.default),
    aten.any.default: _any,
    aten.any.dim: _any,
    aten.any.dims: _any,
    aten.all.default: _all,
    aten.all.dim: _all,
    aten.all.dims: _all,
    aten.count_nonzero.default: _count,
    aten.count_nonzero.dim_IntList: _count,
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.bucketize.Tensor: _bucketize,
    aten.searchsorted.Tensor: _search_sorted,
}
