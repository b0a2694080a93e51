"""Quantiles and medians that leave NaN out are numbers read at their rank, and what lies between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph import ranking
from sptrace.compiler.graph.builder import GraphBuilder, parameter, shape, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_conditions import how_many
from sptrace.passes.rewriting import replace_results

aten = torch.ops.aten


def canonicalize_quantiles(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. quantile(x, q, dim)          ->  s = x in its order; s_i + w (s_j - s_i), i and j on either side of q (n - 1)
    2. nanquantile(x, q, dim)       ->  the same, i, j and w looked up by how many numbers there are
    3. nanmedian(x, dim)            ->  s_i, i looked up likewise

    The chosen numbers carry the cotangent to where they stood; their places carry none.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in REWRITES:
            continue
        with builder.replacing(node):
            REWRITES[node.target](builder, node, *node.args, **node.kwargs)
        count += 1
    return count


def _quantile(leaves_out: bool) -> Callable[..., None]:
    def rewrite(
        builder: GraphBuilder,
        node: fx.Node,
        x: fx.Node,
        q: float | fx.Node,
        dim: int | None = None,
        keepdim: bool = False,
        *,
        interpolation: str = "linear",
    ) -> None:
        wanted = _constant(builder, node, q)
        order = _Order(builder, x, _dim(node, x, dim), leaves_out)
        results = [_between(builder, order, float(each), interpolation) for each in wanted.flatten()]
        if not keepdim:
            results = [builder.call(aten.squeeze.dim, result, order.dim) for result in results]
        if wanted.ndim == 0:
            builder.replace(node, results[0])
        else:
            builder.replace(node, builder.call(aten.stack.default, results, 0))

    return rewrite


def _constant(builder: GraphBuilder, node: fx.Node, q: float | fx.Node) -> Tensor:
    if isinstance(q, int | float):
        return torch.tensor(q)
    if q.op != "get_attr":
        raise UnsupportedError(
            f"{node.target} ({_source(node)}) of a rank computed from the image: use a number"
        )
    return parameter(builder.module, q)


def _dim(node: fx.Node, x: fx.Node, dim: int | None) -> int:
    if dim is None:
        raise UnsupportedError(
            f"{node.target} ({_source(node)}) of a whole batch lets one picture's explanation depend on the others: "
            "say dim="
        )
    static_shape(x, [dim])
    return dim % value(x).ndim


class _Order:
    """The numbers of x along a dimension from the smallest on, NaN behind all others."""

    def __init__(self, builder: GraphBuilder, x: fx.Node, dim: int, leaves_out: bool) -> None:
        self._builder, self._x, self.dim = builder, x, dim
        (self._length,) = static_shape(x, [dim])
        self._missing = builder.call(aten.ne.Tensor, x, x)
        self._leaves_out = leaves_out
        filled = builder.call(aten.where.ScalarSelf, self._missing, math.inf, x)
        self._places = builder.call(ranking.places, filled, self._length, dim, False)

    def looked_up(self, of: Callable[[int], float]) -> fx.Node:
        """A number that depends on how many numbers there are, as x with one place along the dimension."""
        if not self._leaves_out:
            return self._builder.constant(
                "quantile.number", torch.tensor(of(self._length), dtype=value(self._x).dtype)
            )
        table = torch.tensor([[of(max(count, 1))] for count in range(self._length + 1)], dtype=torch.float32)
        found = self._builder.call(aten.logical_not.default, self._missing)
        count = self._builder.call(aten.to.dtype, how_many(self._builder, found, self.dim, True), torch.int64)
        rows = self._builder.call(
            aten.embedding.default, self._builder.constant("quantile.table", table), count
        )
        return self._builder.reshape(rows, shape(count))

    def place(self, rank: Callable[[int], int]) -> fx.Node:
        """Where the number of a rank stands; the rank depends on how many there are."""
        if not self._leaves_out:
            at = rank(self._length)
            return self._builder.call(aten.slice.Tensor, self._places, self.dim, at, at + 1)
        at_each = self._builder.call(aten.to.dtype, self.looked_up(rank), torch.int64)
        return self._builder.call(aten.gather.default, self._places, self.dim, at_each)

    def number(self, rank: Callable[[int], int]) -> fx.Node:
        """The number itself; NaN where one is among the numbers and is not left out."""
        found = self._builder.call(aten.gather.default, self._x, self.dim, self.place(rank))
        if self._leaves_out:
            return found
        some = self._builder.call(aten.gt.Scalar, how_many(self._builder, self._missing, self.dim, True), 0)
        return self._builder.call(aten.where.ScalarSelf, some, math.nan, found)


def _between(builder: GraphBuilder, order: _Order, q: float, interpolation: str) -> fx.Node:
    def rank(count: int) -> float:
        return q * (count - 1)

    rounded: dict[str, Callable[[int], int]] = {
        "lower": lambda count: math.floor(rank(count)),
        "higher": lambda count: math.ceil(rank(count)),
        "nearest": lambda count: round(rank(count)),
    }
    if interpolation in rounded:
        return order.number(rounded[interpolation])
    below, above = (order.number(rounded[side]) for side in ("lower", "higher"))
    weight = order.looked_up(
        (lambda count: 0.5)
        if interpolation == "midpoint"
        else lambda count: rank(count) - math.floor(rank(count))
    )
    return builder.call(aten.lerp.Tensor, below, above, weight)


def _nanmedian(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int = -1, keepdim: bool = False
) -> None:
    """The lower of two middles, and where it stands."""
    order = _Order(builder, x, _dim(node, x, dim), leaves_out=True)
    place = order.place(lambda count: (count - 1) // 2)
    results = [builder.call(aten.gather.default, x, order.dim, place), place]
    if not keepdim:
        results = [builder.call(aten.squeeze.dim, result, order.dim) for result in results]
    replace_results(builder, node, results)
    builder.graph.erase_node(node)


def _source(node: fx.Node) -> str:
    return str(facts(node).source)


REWRITES: dict[Target, Callable[..., Any]] = {
    aten.quantile.scalar: _quantile(leaves_out=False),
    aten.quantile.default: _quantile(leaves_out=False),
    aten.nanquantile.scalar: _quantile(leaves_out=True),
    aten.nanquantile.default: _quantile(leaves_out=True),
    aten.nanmedian.dim: _nanmedian,
}
