"""Several versions of each picture in one batch, and their separation: dimensions of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, value
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.sizes import BATCHES, BatchSize

aten = torch.ops.aten


def canonicalize_batches(module: fx.GraphModule) -> int:
    """Rewrite what joins and cuts batches, as averages over flipped and cropped pictures do; returns how many.

    1. cat([x, flip(x)], 0)            ->  reshape(cat([x, flip(x)] each [1, N, ...], 0), [2 N, ...])
    2. slice(y, 0, N, 2 N)             ->  slice of y [2, N, ...] from 1 to 2, reshaped to [N, ...]
    3. slice(y, 0, 1, end, step 2)     ->  select(y [N, 2, ...], 1, 1)

    Whether the pictures stay apart is asked of the numbers, later (`compiler.independence`).
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in (aten.cat.default, aten.slice.Tensor):
            continue
        with builder.replacing(node):
            rewrite = _joined if node.target is aten.cat.default else _cut
            new = rewrite(builder, *node.args, **node.kwargs)
        if new is not None:
            builder.replace(node, new)
            count += 1
    return count


def _joined(builder: GraphBuilder, tensors: Sequence[fx.Node], dim: int = 0) -> fx.Node | None:
    several = [shape(x)[0] for x in tensors if value(x).ndim]
    if dim % value(tensors[0]).ndim or not all(isinstance(size, BatchSize) for size in several):
        return None
    versions = [builder.reshape(x, [_each(x), BatchSize(), *shape(x)[1:]]) for x in tensors]
    joined = builder.call(aten.cat.default, versions, 0)
    return builder.reshape(joined, [BatchSize(sum(map(_each, tensors))), *shape(tensors[0])[1:]])


def _cut(
    builder: GraphBuilder,
    x: fx.Node,
    dim: int = 0,
    start: int | fx.Node | None = None,
    end: int | fx.Node | None = None,
    step: int = 1,
) -> fx.Node | None:
    if dim % value(x).ndim or not isinstance(shape(x)[0], BatchSize):
        return None
    each = _each(x)
    bounds = [
        slice(_at(start, index), _at(end, index)).indices(each * count)[:2]
        for index, count in enumerate(BATCHES)
    ]
    if step > 1:
        (first, after), (also_first, _) = bounds
        if first != also_first or first >= step or after < each * BATCHES[0] or each % step:
            return None
        versions = builder.reshape(x, [BatchSize(each // step), step, *shape(x)[1:]])
        return builder.call(aten.select.int, versions, 1, first)
    whole = [tuple(bound // count for bound in pair) for pair, count in zip(bounds, BATCHES, strict=True)]
    exact = all(bound % count == 0 for pair, count in zip(bounds, BATCHES, strict=True) for bound in pair)
    if not exact or whole[0] != whole[1] or whole[0] == (0, each):
        return None
    versions = builder.reshape(x, [each, BatchSize(), *shape(x)[1:]])
    kept = builder.call(aten.slice.Tensor, versions, 0, *whole[0])
    return builder.reshape(kept, [BatchSize(whole[0][1] - whole[0][0]), *shape(x)[1:]])


def _each(x: fx.Node) -> int:
    size = shape(x)[0]
    assert isinstance(size, BatchSize)
    return size.each


def _at(bound: int | fx.Node | None, index: int) -> int | None:
    """The bound at one of `BATCHES`."""
    found = facts(bound).values[index] if isinstance(bound, fx.Node) else bound
    return None if found is None else int(found)
