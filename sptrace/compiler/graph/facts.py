"""What is known of a node of a graph, as one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx

Target = Callable[..., Any]
"""What a call_function node calls: an ATen overload or a gate of `graph.gates`."""

_KEY = "facts"


@dataclass(frozen=True)
class Facts:
    """What is known of a node.

    Arguments:
        values: what it gives for each of the two batch sizes of `BATCHES`: tensors without data (device "meta"),
            numbers for size arithmetic, or tuples of these. Empty for what gives nothing, a graph's output.
        path: the module that it came from, for example "layer1.0.conv1"; "" at the network's top level.
        source: file, line and text of the network's own ``forward`` (torch.export records no deeper), for messages.
        adjoint: is it part of the pullback?
        written_for: the op that the network called, where that was written out of others; None for the op itself.
        is_filled: is it a constant that stands for memory which the network writes to?
    """

    values: tuple[Any, ...] = ()
    path: str = ""
    source: str = "source unknown"
    adjoint: bool = False
    written_for: Target | None = None
    is_filled: bool = False

    @property
    def first(self) -> Any:
        """What the node gives for the first batch size; None if it gives nothing."""
        return self.values[0] if self.values else None


def facts(node: fx.Node) -> Facts:
    """What is known of a node."""
    known = node.meta.get(_KEY)
    return known if isinstance(known, Facts) else Facts()


def record(node: fx.Node, known: Facts) -> None:
    """Let this be all that is known of a node."""
    node.meta = {_KEY: known}


def learn(node: fx.Node, **changes: Any) -> None:
    """Change some of what is known of a node; the names are those of `Facts`."""
    record(node, replace(facts(node), **changes))
