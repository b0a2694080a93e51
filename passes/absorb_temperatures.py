"""What a soft gate multiplies its input by becomes part of the weights around it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import fx

from sptrace import gates
from sptrace.graph import GraphBuilder, parameter, permutation
from sptrace.passes.fold_batch_norms import CONVOLUTIONS

aten = torch.ops.aten

LAYERS = CONVOLUTIONS | {aten.linear.default}
LINEAR = {
    aten.permute.default,
    aten.transpose.int,
    aten.reshape.default,
    aten.avg_pool2d.default,
    aten.mean.dim,
}
"""What passes a factor on as it is; padding with zeros does so too."""


def absorb_temperatures(module: fx.GraphModule) -> int:
    """Scale the input of gates between layers, so that the gate needs no factor; returns how many.

    Before:  y = relu(z, tau), z = conv(x, w, b), conv(y, u, c):        z* = v (erf(z / (tau sqrt 2)) + 1) / 2
    After:   with s = 1 / (tau sqrt 2), z = conv(x, s w, s b), conv(y, u / s, c):  z* = v (erf(z) + 1) / 2

    ReLU (`phi`) is positively homogeneous: its y becomes s y. So is ReLU6, if its bound becomes 6 s. Exact GELU at
    tau = 1, with s = sqrt 1/2, becomes y = z (1 + erf z), which is sqrt 2 times the y before.
    The function of the network stays, and so does its pullback: only numbers inside are on another scale.

    The input must come from one layer with constant weights, and the output go to such layers, through nothing but
    shapes, average and max pools (whose temperatures are scaled alike), and products with what is not scaled.
    """
    builder = GraphBuilder(module)
    count = 0
    for gate in list(module.graph.nodes):
        scales = _scales(gate)
        if scales is None:
            continue
        before = _producer(gate.args[0])
        after = _consumers(gate)
        if before is None or after is None:
            continue
        factor, output = scales
        layers, pools = after
        _scale(builder, before, factor, inputs=False)
        for layer in layers:
            _scale(builder, layer, 1 / output, inputs=True)
        for pool in pools:
            pool.update_kwarg("tau", pool.kwargs["tau"] * output)  # type: ignore[operator]
        _exchange(builder, gate, factor)
        count += 1
    return count


def _scales(gate: fx.Node) -> tuple[float, float] | None:
    """By what the gate's input is to be multiplied, and its output is then; None if it has no such factor."""
    rule, tau = gate.kwargs.get("rule"), gate.kwargs.get("tau")
    if not isinstance(tau, int | float):
        return None
    is_relu6 = gate.target is gates.hardtanh and gate.args[1] == 0 and rule != "hard"
    if is_relu6 or (gate.target is gates.relu and rule == "phi"):
        factor = 1 / (tau * math.sqrt(2))
        return factor, factor
    if gate.target is gates.gelu and rule == "gate" and tau == 1 and gate.args[1] == "none":
        return math.sqrt(0.5), math.sqrt(2)
    return None


def _exchange(builder: GraphBuilder, gate: fx.Node, factor: float) -> None:
    """The gate of the scaled input."""
    if gate.target is gates.gelu:
        with builder.replacing(gate):
            builder.replace(gate, builder.call(gates.erf_gelu, gate.args[0], rule="gate", tau=None))
        return
    gate.update_kwarg("tau", 1 / math.sqrt(2))
    if gate.target is gates.hardtanh:
        z, low, high = gate.args
        gate.args = (z, low, high * factor)  # type: ignore[operator]


def _producer(z: object) -> fx.Node | None:
    """The layer that gives a gate its input and nobody else anything."""
    while isinstance(z, fx.Node) and len(z.users) == 1:
        if _is_layer(z):
            return z
        if z.op != "call_function" or not (permutation(z) or z.target == aten.reshape.default):
            return None
        z = z.args[0]
    return None


def _consumers(gate: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """The layers that read a gate's output, and the max pools between; None if anything else does."""
    scaled, layers, pools = {gate}, [], []
    joins: list[fx.Node] = []
    waiting = [gate]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if _is_layer(user) and user.args[0] is node and node not in user.args[1:]:
                layers.append(user)
                continue
            if user.target is gates.max_pool2d and isinstance(user.kwargs["tau"], int | float | None):
                pools.append(user)
            elif user.target in (aten.mul.Tensor, aten.add.Tensor, aten.cat.default):
                joins.append(user)
            elif user.target == aten.constant_pad_nd.default and not any(user.args[2:]):
                pass
            elif user.target not in LINEAR:
                return None
            if user not in scaled:
                scaled.add(user)
                waiting.append(user)
    for join in joins:
        inside = [item in scaled for item in _operands(join)]
        if not (inside.count(True) == 1 if join.target == aten.mul.Tensor else all(inside)):
            return None
    soft = [pool for pool in dict.fromkeys(pools) if pool.kwargs["tau"] is not None]
    return list(dict.fromkeys(layers)), soft


def _operands(join: fx.Node) -> Iterator[object]:
    """What a join joins, one item for each place."""
    if join.target == aten.cat.default:
        yield from join.args[0]  # type: ignore[misc]
    else:
        yield from join.args[:2]


def _is_layer(node: fx.Node) -> bool:
    """Is it a layer with constant weights that nobody else reads?"""
    return node.target in LAYERS and all(
        item.op == "get_attr" and len(item.users) == 1 for item in node.all_input_nodes[1:]
    )


def _scale(builder: GraphBuilder, layer: fx.Node, factor: float, *, inputs: bool) -> None:
    """Multiply a layer's weight by a factor, and where that is for its outputs, its bias too."""
    _, weight, bias, *_ = (*layer.args, None)
    path = layer.meta["path"] or layer.name
    for constant, name in ((weight, "weight"), (None if inputs else bias, "bias")):
        if constant is not None:
            data = parameter(builder.module, constant).double() * factor  # type: ignore[arg-type]
            with builder.replacing(layer):
                builder.replace_constant(constant, f"{path}.folded_{name}", data.float())  # type: ignore[arg-type]
