"""What a soft gate multiplies its input by becomes part of the weights around it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, parameter
from sptrace.compiler.graph.facts import Target, facts
from sptrace.passes.fold_batch_norms import CONVOLUTIONS
from sptrace.passes.fold_scales import weights

aten = torch.ops.aten

LAYERS = CONVOLUTIONS | {aten.linear.default}
HOMOGENEOUS: set[Target] = {
    aten.avg_pool2d.default,
    aten.cat.default,
    aten.expand.default,
    aten.mean.dim,
    aten.neg.default,
    aten.permute.default,
    aten.reshape.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.sum.dim_IntList,
    aten.transpose.int,
    aten.upsample_nearest2d.default,
    gates.amax,
    gates.hardtanh,
    gates.max_pool2d,
    gates.relu,
}
"""Ops f with f(s x) = s f(x) for positive s, their bounds and temperatures scaled alike."""

BOUNDED = {aten.sigmoid.default, aten.hardsigmoid.default}
"""What gates channels by a product."""

ERF, GELU_IN, GELU_OUT = 1 / math.sqrt(2), math.sqrt(0.5), math.sqrt(2)
"""The temperature at which Phi(z / tau) needs no factor; the scales between which GELU needs none."""


def absorb_temperatures(module: fx.GraphModule) -> int:
    """Scale numbers inside the network so that gates need no factor; returns for how many that was done.

    Before:  z = conv(x, w, b), y = relu(z, tau), conv(y, u, c):          z* = v (erf(z / (tau sqrt 2)) + 1) / 2
    After:   with s = 1 / (tau sqrt 2), conv(x, s w, s b), conv(y, u / s, c):       z* = v (erf(z) + 1) / 2

    ReLU and ReLU6 are positively homogeneous (ReLU6 with its bound): where z is multiplied by s, so is y, and so on
    through sums, pools and shapes, up to layers, which take the factor back. Exact GELU at tau = 1, of z multiplied by
    sqrt 1/2, becomes z (1 + erf z), which is y multiplied by sqrt 2. The function of the network stays, and so does its
    pullback. Where anything else reads or makes a number of such a group, or a weight is read twice, the group stays.
    """
    groups = _Groups()
    for node in module.graph.nodes:
        groups.add(node)
    scale = groups.scales()
    builder = GraphBuilder(module)
    # All read before anything is exchanged.
    plan = [
        (node, scale(next(iter(node.args), None)), scale(node))
        for node in module.graph.nodes
        if node.op == "call_function"
    ]
    return sum(_apply(builder, node, before, after) for node, before, after in plan)


Scales = Callable[[object], float]
"""What a node's numbers are multiplied by."""


class _Groups:
    """Nodes whose numbers can only be scaled together."""

    def __init__(self) -> None:
        self._parents: dict[fx.Node, fx.Node] = {}
        self._fixed: list[fx.Node] = []
        self._wishes: list[tuple[fx.Node, float]] = []
        self._gelus: list[fx.Node] = []

    def add(self, node: fx.Node) -> None:
        """Join the node with those that it shares its scale with, or fix it and what it reads."""
        if _is_layer(node):
            return
        joined = _joined(node)
        if joined:
            for other in joined:
                self._parents[self._root(other)] = self._root(node)
            wish = _wish(node)
            if wish is not None:
                self._wishes.append((node, wish))
        elif node.target is gates.gelu and _is_plain_gelu(node):
            self._gelus.append(node)
        else:
            self._fixed += [node, *node.all_input_nodes]

    def scales(self) -> Scales:
        """The scale of every node; 1 where nothing wishes for another."""
        while True:
            wanted: dict[fx.Node, list[float]] = defaultdict(list)
            wishes = self._wishes + [
                wish
                for gelu in self._gelus
                for wish in ((gelu.all_input_nodes[0], GELU_IN), (gelu, GELU_OUT))
            ]
            for node, wish in wishes:
                wanted[self._root(node)].append(wish)
            for node in self._fixed:
                wanted[self._root(node)] = [1.0]
            refused = [gelu for gelu in self._gelus if not self._agrees(gelu, wanted)]
            if not refused:
                return lambda node: (
                    wanted.get(self._root(node), [1.0])[0] if isinstance(node, fx.Node) else 1.0
                )
            self._gelus = [gelu for gelu in self._gelus if gelu not in refused]
            self._fixed += [node for gelu in refused for node in (gelu, *gelu.all_input_nodes)]

    def _agrees(self, gelu: fx.Node, wanted: dict[fx.Node, list[float]]) -> bool:
        before, after = (wanted[self._root(node)] for node in (gelu.all_input_nodes[0], gelu))
        return set(before) == {GELU_IN} and set(after) == {GELU_OUT}

    def _root(self, node: fx.Node) -> fx.Node:
        while node in self._parents and self._parents[node] is not node:
            node = self._parents[node]
        return node


def _joined(node: fx.Node) -> Sequence[fx.Node]:
    """What must have the scale of the node for the node to keep its meaning; nothing if that is not enough."""
    zeros = node.target == aten.constant_pad_nd.default and not any(node.args[2:])
    if zeros or node.target in HOMOGENEOUS:
        return node.all_input_nodes
    if node.target in (aten.add.Tensor, aten.sub.Tensor):
        constant = _own_constant(node)
        given = [item for item in node.args[:2] if isinstance(item, fx.Node)]
        return [item for item in given if item is not constant] if len(given) == 2 else []
    if node.target == aten.mul.Tensor:
        given = [item for item in node.args[:2] if isinstance(item, fx.Node) and item.op != "get_attr"]
        free = [item for item in given if item.target not in BOUNDED]
        return free if len(free) == 1 else []
    return []


def _own_constant(node: fx.Node) -> fx.Node | None:
    """The constant that a sum adds, if nobody else reads it."""
    constants = [item for item in node.all_input_nodes if item.op == "get_attr" and len(item.users) == 1]
    return constants[0] if len(constants) == 1 else None


def _wish(gate: fx.Node) -> float | None:
    """The scale at which a homogeneous gate needs no factor."""
    rule, tau = gate.kwargs.get("rule"), gate.kwargs.get("tau")
    if not isinstance(tau, int | float) or gate.target in (gates.amax, gates.max_pool2d):
        return None
    return 1 / tau if rule == "sigmoid" else ERF / tau


def _is_plain_gelu(gate: fx.Node) -> bool:
    return (gate.kwargs["rule"], gate.kwargs["tau"], gate.args[1]) == ("gate", 1, "none")


def _is_layer(node: fx.Node) -> bool:
    """Is it a layer with constant weights that nobody else reads?"""
    return node.target in LAYERS and all(
        item.op == "get_attr" and len(item.users) == 1 for item in node.all_input_nodes[1:]
    )


def _apply(builder: GraphBuilder, node: fx.Node, before: float, scale: float) -> bool:
    """Scale a layer's weights, a sum's constant, or a gate's settings; true if the gate has no factor any more."""
    if _is_layer(node):
        weight, bias = weights(node)
        _multiply(builder, node, weight, "weight", scale / before)
        _multiply(builder, node, bias, "bias", scale)
    elif node.target is gates.gelu and scale == GELU_OUT:
        with builder.replacing(node):
            builder.replace(node, builder.call(gates.erf_gelu, node.args[0], rule="gate", tau=None))
        return True
    elif scale != 1 and node.target in (aten.add.Tensor, aten.sub.Tensor):
        _multiply(builder, node, _own_constant(node), "shift", scale)
    elif scale != 1 and isinstance(tau := node.kwargs.get("tau"), int | float):
        exact = 1.0 if node.kwargs["rule"] == "sigmoid" else ERF
        wished = scale == _wish(node)
        node.update_kwarg("tau", exact if wished else tau * scale)
        if node.target is gates.hardtanh:
            z, low, high = node.args
            node.args = (z, low * scale, high * scale)  # type: ignore[operator]
        return wished
    return False


def _multiply(
    builder: GraphBuilder, reader: fx.Node, constant: fx.Node | None, name: str, factor: float
) -> None:
    if factor == 1 or constant is None:
        return
    data = parameter(builder.module, constant).double() * factor
    path = facts(reader).path or reader.name
    with builder.replacing(reader):
        builder.replace_constant(constant, f"{path}.folded_{name}", data.float())
