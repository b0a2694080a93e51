"""Maps woven of others: the cells of a map in every s-th row and column are a *phase* of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape
from sptrace.compiler.graph.sizes import Size

aten = torch.ops.aten

Phases = Mapping[tuple[int, int], fx.Node]


def weave(builder: GraphBuilder, phases: Phases, strides: tuple[int, int]) -> fx.Node:
    """The map [N, C, h rows, w columns] of phases [N, C, h, w], where `strides` are (rows, columns).

    Arguments:
        builder: what nodes are appended with.
        phases: at (i, j) the cells in rows i, i + rows ... and columns j, j + columns ...; zeros where one is missing,
            but not all are.
        strides: how many phases there are in each direction.
    """
    rows, columns = strides
    if rows == columns == 1:
        return phases[0, 0]
    some = next(iter(phases.values()))
    complete = len(phases) == rows * columns
    nothing = some if complete else builder.call(aten.zeros_like.default, some)
    batch, channels = shape(some)[:2]
    height, width = static_shape(some, [2, 3])
    woven = []
    for row in range(rows):
        cells = [phases.get((row, column), nothing) for column in range(columns)]
        woven.append(_alternate(builder, cells, [batch, channels, height, width * columns]))
    # Row after row beside each other is row after row below each other. Runtimes do this faster than they permute.
    stacked = builder.call(aten.cat.default, woven, 3) if rows > 1 else woven[0]
    return builder.reshape(stacked, [batch, channels, height * rows, width * columns])


def _alternate(builder: GraphBuilder, parts: Sequence[fx.Node], sizes: Sequence[Size]) -> fx.Node:
    """One number of each part in turn along the last dimension."""
    if len(parts) == 1:
        return parts[0]
    alone = [builder.reshape(part, [*shape(part), 1]) for part in parts]
    return builder.reshape(builder.call(aten.cat.default, alone, 4), sizes)
