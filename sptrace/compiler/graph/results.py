"""The outputs of a graph by their names."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

_KEY = "names"


def results(graph: fx.Graph) -> dict[str, fx.Node]:
    """What a graph gives, by name: the tuple of its output, with the names that `give` noted."""
    output = graph.output_node()
    return dict(zip(output.meta[_KEY], output.args[0], strict=True))  # type: ignore[arg-type]


def give(graph: fx.Graph, named: Mapping[str, fx.Node]) -> None:
    """Let a graph give these, as a tuple in their order, in place of what it gave."""
    for output in graph.find_nodes(op="output"):
        output.args = (tuple(named.values()),)
        break
    else:
        output = graph.output(tuple(named.values()))
    output.meta = {_KEY: tuple(named)}
