"""Every gating nonlinearity becomes one node that is hard forward and soft backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from sptrace import gates
from sptrace.artifact import GateCount
from sptrace.graph import GraphBuilder, Target
from sptrace.softening import Softening

aten = torch.ops.aten

# A recogniser reads a node's arguments and answers (kind, gate, the gate's arguments), or None if this is no gate.
Recogniser = Callable[..., tuple[str, Target, tuple[Any, ...]] | None]


def soften(module: fx.GraphModule, softening: Softening) -> tuple[GateCount, ...]:
    """Replace gating ops by the gates of `sptrace.gates`; returns how many of each kind, rule and temperature.

    Before:  y = relu(z)
    After:   y = gates.relu(z, rule="phi", tau=0.6)

    The values of the network do not change.
    """
    builder = GraphBuilder(module)
    counts: Counter[tuple[str, str, float | None]] = Counter()
    for node in list(module.graph.nodes):
        recognised = (
            RECOGNISERS[node.target](*node.args, **node.kwargs) if node.target in RECOGNISERS else None
        )
        if recognised is None:
            continue
        kind, gate, arguments = recognised
        rule, tau = softening.gate(kind)
        with builder.replacing(node):
            builder.replace(node, builder.call(gate, *arguments, rule=rule, tau=tau))
        counts[kind, rule, tau] += 1
    return tuple(
        GateCount(*gate, count) for gate, count in sorted(counts.items(), key=lambda item: item[0][0])
    )


def _relu(z: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return "relu", gates.relu, (z,)


def _relu6(z: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return "relu6", gates.hardtanh, (z, 0.0, 6.0)


def _clamp(
    z: fx.Node, low: float | None = None, high: float | None = None
) -> tuple[str, Target, tuple[Any, ...]] | None:
    """Clamping from below at 0 is a ReLU under another name; clamping elsewhere gates nothing."""
    return _relu(z) if low == 0 and high is None else None


def _hardtanh(z: fx.Node, low: float = -1.0, high: float = 1.0) -> tuple[str, Target, tuple[Any, ...]] | None:
    """A lower end of 0 makes a ReLU6; with 0 outside the range, y = z m(z) would need an infinite m: no gate."""
    if not low <= 0 < high:
        return None
    return "relu6" if low == 0 else "hardtanh", gates.hardtanh, (z, float(low), float(high))


def _max_pool2d(z: fx.Node, *options: Any) -> tuple[str, Target, tuple[Any, ...]]:
    return "max_pool", gates.max_pool2d, (z, *options)


RECOGNISERS: dict[Target, Recogniser] = {
    aten.relu.default: _relu,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.max_pool2d.default: _max_pool2d,
}
