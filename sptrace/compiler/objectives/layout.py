"""Which dimension of a layer's output holds its channels, and how the others lie on the picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, depends_on, placeholder, value
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.objectives.coordinates import (
    CHANNEL_NORMS,
    CONVOLUTIONS,
    LAST_NORMS,
    PRODUCTS,
    State,
    every,
    follow,
    numbered,
    op,
)
from sptrace.errors import SptraceError

aten = torch.ops.aten


@dataclass(frozen=True)
class Tokens:
    """How a row of tokens lies on the picture.

    Arguments:
        before: how many come first that are no places: class, distillation and register tokens.
        grid: rows and columns of those that follow, which go row by row.
    """

    before: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """How a layer's output is read.

    Arguments:
        channels: the dimension of its channels.
        places: its other dimensions but the batch; of a map rows, then columns.
        tokens: where its tokens lie; None for maps, and where that is not known.
    """

    channels: int
    places: tuple[int, ...] = ()
    tokens: Tokens | None = None


NO_LAYER = Layout(1)
"""That of logits, and of layers without places: [N, C]."""


def named(channels: str | int, layer: str, ndim: int) -> int:
    """The dimension that a user calls "first", "last" or by its number.

    Raises:
        SptraceError: the layer has no such dimension.
    """
    dim = {"first": 1, "last": ndim - 1}[channels] if isinstance(channels, str) else channels
    if not 0 < dim < ndim:
        raise SptraceError(
            f"channels={channels}: the output of {layer!r} has no such dimension, give 1 to {ndim - 1}"
        )
    return dim


def layout(module: fx.GraphModule, layer: str, channels: str | int | None) -> Layout:
    """How the layer's output is read in a graph that `capture.from_torch` made with this layer.

    Rows and columns are followed from the image. Of the dimensions that are left, the channels are those which the
    convolutions, linear layers and norms around the layer mix: those nearest before it made them, those nearest after
    it read them.

    Arguments:
        module: its outputs are the logits and the layer's output.
        layer: its path, for messages.
        channels: what the user says of it, "first", "last" or a dimension; None: nothing.

    Raises:
        SptraceError: the graph does not tell, or tells two things.
    """
    graph = module.graph
    kept = _kept(module)
    ndim = value(kept).ndim
    image = placeholder(graph, "image")
    sides: State = {
        "row": (2, numbered(value(image).shape[2])),
        "column": (3, numbered(value(image).shape[3])),
    }
    seen: State = follow(graph, {image: sides}).get(kept, {})
    if channels is None:
        found = _without_places(_mixed(graph, image, kept), seen, ndim)
    else:
        found = {named(channels, layer, ndim)}
    if len(found) != 1:
        sizes = ", ".join(map(str, value(kept).shape[1:]))
        told = "several" if found else "none"
        raise SptraceError(
            f"which dimension of {layer!r}, which gives [N, {sizes}], holds its channels? The network tells {told}: "
            'say channels="first" or "last", or the number of the dimension'
        )
    (dim,) = found
    others = tuple(other for other in range(1, ndim) if other != dim)
    if len(others) == 2 and _dims(seen) == others[::-1]:
        others = others[::-1]  # columns stand before rows
    return Layout(dim, others, _tokens(seen, others))


def with_prefix(
    how: Layout, count: int, layer: str, module: fx.GraphModule, picture: Sequence[int]
) -> Layout:
    """The layout with as many tokens before those of the picture as the user says.

    Arguments:
        how: what the graph tells.
        count: what the user says.
        layer: its path, for messages.
        module: its outputs are the logits and the layer's output.
        picture: height and width of the image; the grid has the same proportions.

    Raises:
        SptraceError: the layer gives no tokens, or the rest is no grid.
    """
    if len(how.places) != 1:
        raise SptraceError(f"the layer {layer!r} gives no tokens: leave prefix_tokens out")
    tokens = value(_kept(module)).shape[how.places[0]]
    height, width = picture
    rows = round(math.sqrt(max(tokens - count, 0) * height / width))
    columns = round(rows * width / height)
    if rows * columns != tokens - count or rows == 0:
        raise SptraceError(
            f"{tokens} tokens of {layer!r} without the first {count} are no grid of the proportions "
            f"{height} x {width}: give another number as prefix_tokens"
        )
    return replace(how, tokens=Tokens(count, (rows, columns)))


def places(given: Tensor, how: Layout) -> Tensor:
    """What a layer's output, or its cotangent, is at the places of the picture: [N, C, rows, columns]."""
    ordered = given.permute(0, how.channels, *how.places)
    if how.tokens is None:
        return ordered
    (height, width), before = how.tokens.grid, how.tokens.before
    return ordered[:, :, before : before + height * width].reshape(*ordered.shape[:2], height, width)


def _kept(module: fx.GraphModule) -> fx.Node:
    """The layer's output."""
    output: Any = module.graph.output_node()
    kept: fx.Node = output.args[0][1]
    return kept


def _without_places(mixed: set[int], seen: State, ndim: int) -> set[int]:
    """Dimensions that may hold channels: the one left by the batch and the places, else those mixed."""
    left = set(range(1, ndim))
    if len(seen) == 2:
        left -= set(_dims(seen))
    return left if len(left) == 1 else mixed & left


def _dims(seen: State) -> tuple[int, ...]:
    return tuple(seen[side][0] for side in ("row", "column") if side in seen)


def _tokens(seen: State, places: Sequence[int]) -> Tokens | None:
    """Where tokens lie, if rows and columns reached them side by side."""
    if len(places) != 1 or _dims(seen) != (places[0], places[0]):
        return None
    rows, columns = (_ranks(seen[side][1]) for side in ("row", "column"))
    there = (rows > 0) & (columns > 0)
    before, count = int(there.int().argmax()), int(there.sum())
    height, width = int(rows.max()), int(columns.max())
    lines = slice(before, before + count)
    regular = (
        count == height * width
        and torch.equal(rows[lines], torch.arange(1, height + 1).repeat_interleave(width))
        and torch.equal(columns[lines], torch.arange(1, width + 1).repeat(height))
    )
    return Tokens(before, (height, width)) if regular else None


def _ranks(line: Tensor) -> Tensor:
    """Coordinates counted 1, 2, ... whatever their numbers; 0 stays."""
    own = torch.unique(line[line > 0])
    return torch.where(line > 0, torch.searchsorted(own, line) + 1, 0) if len(own) else line.long()


def _mixed(graph: fx.Graph, image: fx.Node, kept: fx.Node) -> set[int]:
    """Dimensions of the layer's output that the layers nearest before it made, and those nearest after it read."""
    varying = depends_on(graph, image)
    found = set()
    after = follow(graph, {kept: every(kept)}, lambda node: _axes(node, varying) is not None)
    for node in graph.nodes:
        axes = _axes(node, varying)
        if axes is None:
            continue
        read, axis, _ = axes
        found |= _at(after.get(read), axis % value(read).ndim)
    for maker, axis in _makers(kept, varying):
        starts = {maker: every(maker)}
        reached: Any = follow(graph, starts, lambda node: _axes(node, varying) is not None).get(kept, {})
        made = axis % value(maker).ndim
        if made in reached and not any(
            key != made and held[0] == reached[made][0] for key, held in reached.items()
        ):
            found.add(reached[made][0])
    return found


def _at(state: Any, axis: int) -> set[int]:
    """The one coordinate that stands along this dimension, whole."""
    here = [key for key, (dim, _) in state.items() if dim == axis] if isinstance(state, dict) else []
    return set(here) if len(here) == 1 else set()


def _makers(kept: fx.Node, varying: set[fx.Node]) -> list[tuple[fx.Node, int]]:
    """The mixing layers nearest before a node, each with the dimension of the channels that it makes."""
    makers: list[tuple[fx.Node, int]] = []
    pending, passed = [kept], {kept}
    while pending:
        node = pending.pop()
        axes = _axes(node, varying)
        if axes is not None and isinstance(facts(node).first, Tensor):
            makers.append((node, axes[2]))
            continue
        for argument in node.all_input_nodes:
            if argument in varying and argument not in passed:
                passed.add(argument)
                pending.append(argument)
    return makers


def _axes(node: fx.Node, varying: set[fx.Node]) -> tuple[fx.Node, int, int] | None:
    """Of a layer that mixes channels: what it reads, and the dimension of the channels there and in its result."""
    name = op(node)
    first: Any = node.args[0] if node.args else None
    if first not in varying and name not in PRODUCTS:
        return None
    if name in CONVOLUTIONS | CHANNEL_NORMS:
        return first, 1, 1
    if name == "linear" or (name in LAST_NORMS and len(node.args[1]) == 1):  # type: ignore[arg-type]
        return first, -1, -1
    if name in PRODUCTS:
        second: Any = node.args[1]
        if first in varying and second not in varying:
            return first, -1, -1
        if second in varying and first not in varying:
            return second, -2, -2
    return None


def as_map(builder: GraphBuilder, given: fx.Node, how: Layout) -> fx.Node:
    """A layer's output, or its cotangent, as a map [N, C, rows, columns]; `how` has two places or known tokens."""
    ordered = [0, how.channels, *how.places]
    if ordered != sorted(ordered):
        given = builder.call(aten.permute.default, given, ordered)
    if how.tokens is None:
        return given
    (height, width), before = how.tokens.grid, how.tokens.before
    if value(given).shape[2] != height * width:
        given = builder.call(aten.slice.Tensor, given, 2, before, before + height * width)
    return builder.reshape(given, [-1, value(given).shape[1], height, width])
