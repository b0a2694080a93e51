"""What many passes do: the ops of a table are replaced by what its functions make of them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence

from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder
from sptrace.compiler.graph.facts import Target

Rewrite = Callable[..., fx.Node | None]
"""Takes a builder that stands before the node, the node, and its arguments. Gives what replaces it; None leaves it."""


def rewrite_by(table: Mapping[Target, Rewrite], module: fx.GraphModule) -> int:
    """Rewrite the nodes that are there now; returns how many."""
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in table:
            continue
        with builder.replacing(node):
            new = table[node.target](builder, node, *node.args, **node.kwargs)
        if new is not None:
            builder.replace(node, new)
            count += 1
    return count


def replace_results(builder: GraphBuilder, node: fx.Node, results: Sequence[fx.Node | None]) -> None:
    """Let those who read one of an op's several results read the one given here; None leaves them as they are."""
    for reader in list(node.users):
        assert reader.target is operator.getitem
        index = reader.args[1]
        assert isinstance(index, int)
        new = results[index]
        if new is not None:
            builder.replace(reader, new)
