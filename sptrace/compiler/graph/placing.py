"""Adding numbers up at fixed places: the adjoint of reading there, without scattering."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value

aten = torch.ops.aten

LARGEST_MATRIX = 2**20
"""Cells of a matrix of 0 and 1; where it would have more, each place is read as often as numbers fall on it."""


def put(builder: GraphBuilder, v: fx.Node, dim: int, places: Tensor, size: int) -> fx.Node:
    """y with `size` cells along `dim`, where y_p is the sum of all v_i with places(i) = p.

    1. each place once, and all of them  ->  index_select(v, the inverse permutation)
    2. each place at most once           ->  index_select(v with a zero at its end, where to find p)
    3. some places more than once        ->  v times a matrix of 0 and 1; where that is large, the sum of several of 2.

    Arguments:
        builder: what the nodes are appended with.
        v: numbers, as many along `dim` as there are places.
        dim: counted from the front.
        places: int64 [K], 0 <= place < size.
        size: of the result along `dim`.
    """
    rounds = _rounds(places, size)
    if len(rounds) == 1 and len(places) == size:
        return builder.call(aten.index_select.default, v, dim, _index(builder, rounds[0]))
    if len(rounds) > 1 and len(places) * size <= LARGEST_MATRIX:
        return _times_matrix(builder, v, dim, places, size)
    # constant_pad_nd counts from the last dimension.
    padded = builder.call(aten.constant_pad_nd.default, v, [0, 0] * (value(v).ndim - 1 - dim) + [0, 1])
    total, *others = (
        builder.call(aten.index_select.default, padded, dim, _index(builder, each)) for each in rounds
    )
    for other in others:
        total = builder.call(aten.add.Tensor, total, other)
    return total


def read(builder: GraphBuilder, x: fx.Node, dim: int, places: Tensor) -> fx.Node:
    """y_i = x_places(i) along `dim`; places int64 [K], 0 <= place < the size of x."""
    if places.tolist() == list(range(static_shape(x, [dim])[0])):
        return x
    return builder.call(aten.index_select.default, x, dim, _index(builder, places))


def _index(builder: GraphBuilder, places: Tensor) -> fx.Node:
    return builder.constant("reading.index", places.contiguous())


def _rounds(places: Tensor, size: int) -> list[Tensor]:
    """Where to find the first number of each place, the second, and so on; K, one beyond the end, for none."""
    order = places.argsort(stable=True)
    counts = torch.bincount(places, minlength=size)
    firsts = counts.cumsum(0) - counts
    rank = torch.arange(len(places)) - firsts[places[order]]
    rounds = []
    for number in range(int(counts.max()) if len(places) else 1):
        found = torch.full((size,), len(places))
        now = order[rank == number]
        found[places[now]] = now
        rounds.append(found)
    return rounds


def _times_matrix(builder: GraphBuilder, v: fx.Node, dim: int, places: Tensor, size: int) -> fx.Node:
    matrix = builder.constant("reading.places", torch.nn.functional.one_hot(places, size).float())
    last = value(v).ndim - 1
    turned = v if dim == last else builder.call(aten.transpose.int, v, dim, last)
    part = builder.call(aten.matmul.default, turned, matrix)
    return part if dim == last else builder.call(aten.transpose.int, part, dim, last)
