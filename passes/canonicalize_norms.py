"""Norms, deviations, distances and similarities become sums of powers and their roots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_conditions import how_many
from sptrace.passes.rewriting import Rewrite, replace_results, rewrite_by

aten = torch.ops.aten

Dims = Sequence[int] | int | None


def canonicalize_norms(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1.  linalg_vector_norm(x, 2, dims), norm   ->  root(sum(x x), 2)
        of order 1, p, infinity, -infinity, 0  ->  sum(abs(x)), root(sum(abs(x)^p), p), extreme_size(x), sum(x != 0)
    2.  var, std                               ->  the mean square of x - mean(x), and its root
    3.  var_mean(x), std_mean(x)               ->  var(x), std(x) and mean(x)
    4.  pairwise_distance(x, y), cdist(x, y)   ->  the norm of x - y
    5.  cosine_similarity(x, y)                ->  sum(x / |x| y / |y|)
    """
    return rewrite_by(REWRITES, module)


def _vector_norm(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    order: float | None = 2,
    dims: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> fx.Node | None:
    order = 2 if order is None else order
    reduced = _dims(x, dims)
    if order == 2:
        return builder.call(gates.root, _sum(builder, _square(builder, x), reduced, keepdim), 2)
    if math.isinf(order):
        return builder.call(gates.extreme_size, x, reduced, keepdim, order > 0)
    size = builder.call(aten.abs.default, x)
    if order == 1:
        return _sum(builder, size, reduced, keepdim)
    if order == 0:
        return how_many(builder, builder.call(aten.ne.Scalar, x, 0), reduced, keepdim)
    if order < 1:
        return _low_norm(builder, x, size, order, reduced, keepdim)
    powers = builder.call(aten.pow.Tensor_Scalar, size, order)
    return builder.call(gates.root, _sum(builder, powers, reduced, keepdim), order)


def _low_norm(
    builder: GraphBuilder, x: fx.Node, size: fx.Node, order: float, dims: list[int], keepdim: bool
) -> fx.Node:
    """Of an order below 1, where a power has a pole at 0: as in PyTorch, 0 has no cotangent."""
    nothing = builder.call(aten.eq.Scalar, x, 0)
    beside = builder.call(aten.where.ScalarSelf, nothing, 1.0, size)
    powers = builder.call(aten.pow.Tensor_Scalar, beside, order)
    powers = builder.call(aten.where.ScalarSelf, nothing, 0.0 if order > 0 else math.inf, powers)
    return builder.call(gates.root, _sum(builder, powers, dims, keepdim), order)


def _variance(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    dims: Dims = None,
    *options: bool,
    correction: float | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> fx.Node:
    if options:
        unbiased, keepdim = (*options, keepdim)[:2]
    less = float(unbiased) if correction is None else correction
    reduced = _dims(x, dims)
    count = math.prod(static_shape(x, reduced))
    if count <= less:
        where = facts(node).source
        raise UnsupportedError(
            f"the variance of {count} number{'s'[: count > 1]} less {less:g} is not defined ({where}): "
            "the network answers NaN"
        )
    deviation = builder.call(aten.sub.Tensor, x, builder.call(aten.mean.dim, x, reduced, True))
    mean = builder.call(aten.mean.dim, _square(builder, deviation), reduced, keepdim)
    return mean if less == 0 else builder.call(aten.mul.Tensor, mean, count / (count - less))


def _deviation(builder: GraphBuilder, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    return builder.call(gates.root, _variance(builder, node, *args, **kwargs), 2)


def _with_mean(spread: Callable[..., fx.Node]) -> Callable[..., fx.Node]:
    """Both results are replaced at their readers."""

    def rewrite(
        builder: GraphBuilder,
        node: fx.Node,
        x: fx.Node,
        dims: Dims = None,
        *options: bool,
        **kwargs: Any,
    ) -> fx.Node:
        results = [spread(builder, node, x, dims, *options, **kwargs)]
        keepdim = options[1] if len(options) > 1 else kwargs.get("keepdim", False)
        results.append(builder.call(aten.mean.dim, x, _dims(x, dims), keepdim))
        replace_results(builder, node, results)
        return results[0]

    return rewrite


def _pairwise_distance(
    builder: GraphBuilder,
    node: fx.Node,
    a: fx.Node,
    b: fx.Node,
    order: float = 2.0,
    eps: float = 1e-6,
    keepdim: bool = False,
) -> fx.Node | None:
    difference = builder.call(aten.add.Tensor, builder.call(aten.sub.Tensor, a, b), eps)
    return _vector_norm(builder, node, difference, order, [-1], keepdim)


def _distances(
    builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node, order: float = 2.0, mode: int | None = None
) -> fx.Node | None:
    """Each difference written out: no digits are lost, and PyTorch's subgradient at a distance of 0 comes of itself."""
    rows = builder.call(aten.unsqueeze.default, a, value(a).ndim - 1)
    columns = builder.call(aten.unsqueeze.default, b, value(b).ndim - 2)
    difference = builder.call(aten.sub.Tensor, rows, columns)
    if math.isinf(order):
        return _largest_difference(builder, difference)
    return _vector_norm(builder, node, difference, order, [-1])


def _largest_difference(builder: GraphBuilder, difference: fx.Node) -> fx.Node:
    """Of several largest PyTorch gives each the whole cotangent, none its share: each is added, less what it is."""
    size = builder.call(aten.abs.default, difference)
    peak = builder.call(aten.detach.default, builder.call(aten.amax.default, size, [-1], True))
    above = builder.call(aten.sub.Tensor, size, peak)
    found = builder.call(aten.eq.Scalar, above, 0)
    nothing = builder.call(aten.where.ScalarOther, found, above, 0.0)
    total = builder.call(aten.sum.dim_IntList, nothing, [-1])
    return builder.call(aten.add.Tensor, total, builder.call(aten.squeeze.dim, peak, -1))


def _cosine_similarity(
    builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node, dim: int = 1, eps: float = 1e-8
) -> fx.Node:
    """A norm below eps counts as eps, but has its own derivative all the same, as in PyTorch."""
    rank = max(value(a).ndim, value(b).ndim)
    dim = dim % rank - rank
    if len({shape(x)[dim] for x in (a, b)}) > 1:
        raise UnsupportedError("cosine_similarity of vectors of different lengths: expand the shorter one")
    units = []
    for x in (a, b):
        norm = builder.call(gates.root, _sum(builder, _square(builder, x), [dim], True), 2)
        missing = builder.call(aten.sub.Tensor, builder.call(aten.clamp_min.default, norm, eps), norm)
        length = builder.call(aten.add.Tensor, norm, builder.call(aten.detach.default, missing))
        units.append(builder.call(aten.div.Tensor, x, length))
    return _sum(builder, builder.call(aten.mul.Tensor, *units), [dim], False)


def _square(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    return builder.call(aten.mul.Tensor, x, x)


def _sum(builder: GraphBuilder, x: fx.Node, dims: list[int], keepdim: bool) -> fx.Node:
    return builder.call(aten.sum.dim_IntList, x, dims, keepdim)


def _dims(x: fx.Node, dims: Dims) -> list[int]:
    if isinstance(dims, int):
        dims = [dims]
    reduced = list(dims) if dims else list(range(value(x).ndim))
    static_shape(x, reduced)
    return reduced


REWRITES: dict[Target, Rewrite] = {
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: _vector_norm,
    aten.var.dim: _variance,
    aten.var.correction: _variance,
    aten.std.dim: _deviation,
    aten.std.correction: _deviation,
    aten.var_mean.dim: _with_mean(_variance),
    aten.var_mean.correction: _with_mean(_variance),
    aten.std_mean.dim: _with_mean(_deviation),
    aten.std_mean.correction: _with_mean(_deviation),
    aten.pairwise_distance.default: _pairwise_distance,
    aten.cdist.default: _distances,
    aten.cosine_similarity.default: _cosine_similarity,
}
