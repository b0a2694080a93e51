"""Every gating nonlinearity becomes one node that is hard forward and soft backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from sptrace.artifact.description import GateCount
from sptrace.artifact.softening import Relative, Softening, Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import (
    GraphBuilder,
    depends_on,
    influenced_by,
    is_batch,
    placeholder,
    shape,
    value,
)
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BatchSize
from sptrace.errors import SptraceError
from sptrace.passes.curves import Gate
from sptrace.passes.soften_attention import soften_attention
from sptrace.passes.spellings import Spellings, inputs

aten = torch.ops.aten

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# A recogniser reads a node's arguments and answers which gate it is, or None if this is none.
Recogniser = Callable[..., Gate | None]


def soften(module: fx.GraphModule, softening: Softening) -> tuple[GateCount, ...]:
    """Replace gating ops by the gates of `graph.gates`; returns how many of each kind, rule and temperature.

    Before:  y = relu(z)
    After:   y = gates.relu(z, rule="phi", tau=0.6)

    The values of the network do not change. Attention matrices are the matter of `soften_attention`, which runs first.

    Raises:
        SptraceError: an override of the softening concerns no gate of this network.
    """
    builder = GraphBuilder(module)
    found = [("attention", path) for path in soften_attention(module, softening)]
    new: dict[fx.Node, fx.Node] = {}
    known = _known(module)
    whole = _whole(module, known)
    for node, gate in known.items():
        if node not in whole:
            # A part of another one, which is left as it is if its rule is `hard`.
            if _named(node) is not None:
                with builder.replacing(node):
                    new[node] = _call(builder, node, gate, new, "hard", None)
                    builder.replace(node, new[node])
            continue
        path = str(facts(node).path)
        rule, tau = softening.gate(gate.kind, path)
        found.append((gate.kind, path))
        if rule == "hard" and _named(node) is None:
            continue  # what it is written out of has PyTorch's own derivative, to the tie
        with builder.replacing(node):
            new[node] = _call(builder, node, gate, new, rule, tau)
            builder.replace(node, new[node])
    _check_overrides(softening, found)
    counts = Counter((kind, *softening.gate(kind, path)) for kind, path in found)
    return tuple(
        GateCount(kind, rule, str(tau) if isinstance(tau, Relative) else tau, count)
        for (kind, rule, tau), count in sorted(counts.items(), key=lambda item: (item[0][0], str(item[0])))
    )


def recognised(module: fx.GraphModule) -> dict[fx.Node, Gate]:
    """The gates of the network in their order; not those that are only parts of another one."""
    return _whole(module, _known(module))


def _known(module: fx.GraphModule) -> dict[fx.Node, Gate]:
    graph = module.graph
    image = placeholder(graph, "image")
    known: dict[fx.Node, Gate] = {}
    spellings = Spellings(module, depends_on(graph, image), influenced_by(graph, image), known)
    for node in graph.nodes:
        gate = _named(node) or spellings.gate(node)
        if gate is not None:
            known[node] = gate
    return known


def _named(node: fx.Node) -> Gate | None:
    """The gate that is this one op."""
    return RECOGNISERS[node.target](*node.args, **node.kwargs) if node.target in RECOGNISERS else None


def _whole(module: fx.GraphModule, known: dict[fx.Node, Gate]) -> dict[fx.Node, Gate]:
    """Those that something else reads than the gates that they are parts of."""
    read: set[fx.Node] = set()
    for node in reversed(module.graph.nodes):
        if node.op == "output" or node in read:
            read.update(inputs(known[node]) if node in known else node.all_input_nodes)
    return {node: gate for node, gate in known.items() if node in read}


def _call(
    builder: GraphBuilder,
    node: fx.Node,
    gate: Gate,
    new: Mapping[fx.Node, fx.Node],
    rule: str,
    tau: Temperature,
) -> fx.Node:
    """Call the gate that the node is; `new` are the nodes in place of those that its arguments were."""
    z, *others = fx.node.map_arg(gate.arguments, lambda node: new.get(node, node))
    if isinstance(z, list | tuple):
        z = _stacked(builder, z, node)
    if gate.mirrored:
        z = builder.call(aten.neg.default, z)
    others = [
        builder.constant("slope", other.float()) if isinstance(other, Tensor) else other for other in others
    ]
    call = (
        partial(_largest, builder, node) if gate.target is gates.amax else partial(builder.call, gate.target)
    )
    gated = call(z, *others, rule=rule, tau=tau)
    return gated if gate.factor == 1 else builder.call(aten.mul.Tensor, gated, gate.factor)


def _largest(
    builder: GraphBuilder, node: fx.Node, z: fx.Node, dims: Sequence[int], keepdim: bool, **how: Any
) -> fx.Node:
    """The maximum of a stack [4, N, ...] is that of [N, 4, ...]: what belongs to a picture has to be known."""
    axes = range(value(z).ndim)
    batch = next((dim for dim in axes if is_batch(z, dim)), 0)
    if isinstance(shape(z)[0], BatchSize) or batch == 0:
        return builder.call(gates.amax, z, list(dims), keepdim, **how)
    order = [batch, *(dim for dim in axes if dim != batch)]
    turned = builder.call(aten.permute.default, z, order)
    largest = builder.call(gates.amax, turned, sorted(order.index(dim) for dim in dims), True, **how)
    back = builder.call(aten.permute.default, largest, [order.index(dim) for dim in axes])
    return builder.reshape(back, shape(node))


def _stacked(builder: GraphBuilder, maps: Sequence[fx.Node], like: fx.Node) -> fx.Node:
    """[N, ...] and [N, ...] become [N, 2, ...]; `like` has the shape of both together."""
    sizes = shape(like)
    whole = [builder.expand(one, sizes) for one in maps]
    return builder.call(aten.stack.default, whole, 1)


def _check_overrides(softening: Softening, found: Sequence[tuple[str, str]]) -> None:
    used = {(pattern, kind) for kind, path in found for pattern in softening.matching(kind, path)}
    for pattern, changes in softening.overrides.items():
        for kind in changes:
            if (pattern, kind) in used:
                continue
            paths = list(dict.fromkeys(path for other, path in found if other == kind))
            listed = f"it has them in {', '.join(paths[:3])} ..." if paths else "it has none at all"
            raise SptraceError(f"the override {pattern!r} matches no {kind} gate of the network: {listed}")


def _relu(z: fx.Node) -> Gate:
    return Gate("relu", gates.relu, (z,))


def _relu6(z: fx.Node) -> Gate:
    return Gate("relu6", gates.hardtanh, (z, 0.0, 6.0))


def _hardtanh(z: fx.Node, low: float = -1.0, high: float = 1.0) -> Gate | None:
    """A lower end of 0 makes a ReLU6; with 0 outside the range, y = z m(z) would need an infinite m: no gate."""
    if not low <= 0 < high:
        return None
    return Gate("relu6" if low == 0 else "hardtanh", gates.hardtanh, (z, float(low), float(high)))


def _leaky_relu(z: fx.Node, slope: float = 0.01) -> Gate:
    if slope == 0:
        return _relu(z)
    return Gate("leaky_relu", gates.leaky_relu, (z, float(slope)))


def _prelu(z: fx.Node, slope: fx.Node) -> Gate:
    return Gate("leaky_relu", gates.leaky_relu, (z, slope))


def _elu(z: fx.Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Gate:
    return Gate("elu", gates.elu, (z, float(alpha), float(scale), float(input_scale)))


def _selu(z: fx.Node) -> Gate:
    return _elu(z, SELU_ALPHA, SELU_SCALE)


def _celu(z: fx.Node, alpha: float = 1.0) -> Gate:
    return _elu(z, alpha, 1.0, 1.0 / alpha)


def _silu(z: fx.Node) -> Gate:
    return Gate("silu", gates.silu, (z, 1.0))


def _product(a: fx.Node, b: fx.Node | float) -> Gate | None:
    """x sigmoid(x) is a SiLU written out, x sigmoid(c x) a quick GELU, x hardsigmoid(x) a Hardswish.

    All other products gate nothing.
    """
    for x, factor in ((a, b), (b, a)):
        if isinstance(x, fx.Node) and _calls(factor, aten.hardsigmoid.default) and factor.args[0] is x:
            return _hardswish(x)
        if not isinstance(x, fx.Node) or not _calls(factor, aten.sigmoid.default):
            continue
        inside = factor.args[0]
        if inside is x:
            return _silu(x)
        if _calls(inside, aten.mul.Tensor, aten.mul.Scalar) and x in inside.args:
            numbers = [number for number in inside.args if isinstance(number, float | int)]
            if numbers:
                return Gate("quick_gelu", gates.silu, (x, float(numbers[0])))
    return None


def _calls(argument: object, *targets: Target) -> TypeGuard[fx.Node]:
    return isinstance(argument, fx.Node) and argument.target in targets


def _gelu(z: fx.Node, *, approximate: str = "none") -> Gate:
    return Gate("gelu", gates.gelu, (z, approximate))


def _hardswish(z: fx.Node) -> Gate:
    return Gate("hardswish", gates.hardswish, (z,))


def _mish(z: fx.Node) -> Gate:
    return Gate("mish", gates.mish, (z,))


def _glu(x: fx.Node, dim: int = -1) -> Gate:
    return Gate("glu", gates.glu, (x, dim % value(x).ndim))


def _softplus(z: fx.Node, beta: float = 1.0, threshold: float = 20.0) -> Gate:
    return Gate("softplus", gates.softplus, (z, float(beta), float(threshold)))


def _layer_norm(
    x: fx.Node,
    normalized_shape: Sequence[int],
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Gate:
    return Gate("layer_norm", gates.layer_norm, (x, list(normalized_shape), weight, bias, eps))


def _group_norm(
    x: fx.Node,
    groups: int,
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Gate:
    return Gate("group_norm", gates.group_norm, (x, groups, weight, bias, eps))


def _rms_norm(
    x: fx.Node, normalized_shape: Sequence[int], weight: fx.Node | None = None, eps: float | None = None
) -> Gate:
    eps = torch.finfo(value(x).dtype).eps if eps is None else eps
    return Gate("rms_norm", gates.rms_norm, (x, list(normalized_shape), weight, eps))


def _max_pool2d(z: fx.Node, *options: Any) -> Gate:
    return Gate("max_pool", gates.max_pool2d, (z, *options))


def _max_of_windows(z: fx.Node, places: Any, **hard: object) -> Gate:
    return Gate("max_pool", gates.max_of_windows, (z, places))


RECOGNISERS: dict[Target, Recogniser] = {
    aten.relu.default: _relu,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _hardtanh,
    aten.leaky_relu.default: _leaky_relu,
    aten._prelu_kernel.default: _prelu,
    aten.elu.default: _elu,
    aten.selu.default: _selu,
    aten.celu.default: _celu,
    aten.silu.default: _silu,
    aten.mul.Tensor: _product,
    aten.gelu.default: _gelu,
    aten.hardswish.default: _hardswish,
    aten.mish.default: _mish,
    aten.softplus.default: _softplus,
    aten.glu.default: _glu,
    aten.layer_norm.default: _layer_norm,
    aten.group_norm.default: _group_norm,
    aten.rms_norm.default: _rms_norm,
    aten.max_pool2d.default: _max_pool2d,
    gates.max_of_windows: _max_of_windows,
}
