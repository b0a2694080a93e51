"""Every gating nonlinearity becomes one node that is hard forward and soft backward."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import fx

from sptrace import gates
from sptrace.artifact import GateCount
from sptrace.errors import SptraceError
from sptrace.graph import GraphBuilder, Target, value
from sptrace.passes.soften_attention import soften_attention
from sptrace.softening import Relative, Softening

aten = torch.ops.aten

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805

# A recogniser reads a node's arguments and answers (kind, gate, the gate's arguments), or None if this is no gate.
Recogniser = Callable[..., tuple[str, Target, tuple[Any, ...]] | None]


def soften(module: fx.GraphModule, softening: Softening) -> tuple[GateCount, ...]:
    """Replace gating ops by the gates of `sptrace.gates`; returns how many of each kind, rule and temperature.

    Before:  y = relu(z)
    After:   y = gates.relu(z, rule="phi", tau=0.6)

    The values of the network do not change. Attention matrices are the matter of `soften_attention`, which runs first.

    Raises:
        SptraceError: an override of the softening concerns no gate of this network.
    """
    builder = GraphBuilder(module)
    found = [("attention", path) for path in soften_attention(module, softening)]
    for node in list(module.graph.nodes):
        recognised = (
            RECOGNISERS[node.target](*node.args, **node.kwargs) if node.target in RECOGNISERS else None
        )
        if recognised is None:
            continue
        kind, gate, arguments = recognised
        path = str(node.meta["path"])
        rule, tau = softening.gate(kind, path)
        with builder.replacing(node):
            builder.replace(node, builder.call(gate, *arguments, rule=rule, tau=tau))
        found.append((kind, path))
    _check_overrides(softening, found)
    counts = Counter((kind, *softening.gate(kind, path)) for kind, path in found)
    return tuple(
        GateCount(kind, rule, str(tau) if isinstance(tau, Relative) else tau, count)
        for (kind, rule, tau), count in sorted(counts.items(), key=lambda item: (item[0][0], str(item[0])))
    )


def _check_overrides(softening: Softening, found: Sequence[tuple[str, str]]) -> None:
    used = {(pattern, kind) for kind, path in found for pattern in softening.matching(kind, path)}
    for pattern, changes in softening.overrides.items():
        for kind in changes:
            if (pattern, kind) in used:
                continue
            paths = list(dict.fromkeys(path for other, path in found if other == kind))
            listed = f"it has them in {', '.join(paths[:3])} ..." if paths else "it has none at all"
            raise SptraceError(f"the override {pattern!r} matches no {kind} gate of the network: {listed}")


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


def _leaky_relu(z: fx.Node, slope: float = 0.01) -> tuple[str, Target, tuple[Any, ...]]:
    return "leaky_relu", gates.leaky_relu, (z, float(slope))


def _prelu(z: fx.Node, slope: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return "leaky_relu", gates.leaky_relu, (z, slope)


def _elu(
    z: fx.Node, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> tuple[str, Target, tuple[Any, ...]]:
    return "elu", gates.elu, (z, float(alpha), float(scale), float(input_scale))


def _selu(z: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return _elu(z, SELU_ALPHA, SELU_SCALE)


def _celu(z: fx.Node, alpha: float = 1.0) -> tuple[str, Target, tuple[Any, ...]]:
    return _elu(z, alpha, 1.0, 1.0 / alpha)


def _silu(z: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return "silu", gates.silu, (z, 1.0)


def _product(a: fx.Node, b: fx.Node | float) -> tuple[str, Target, tuple[Any, ...]] | None:
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
                return "quick_gelu", gates.silu, (x, float(numbers[0]))
    return None


def _calls(argument: object, *targets: Target) -> TypeGuard[fx.Node]:
    return isinstance(argument, fx.Node) and argument.target in targets


def _gelu(z: fx.Node, *, approximate: str = "none") -> tuple[str, Target, tuple[Any, ...]]:
    return "gelu", gates.gelu, (z, approximate)


def _hardswish(z: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return "hardswish", gates.hardswish, (z,)


def _mish(z: fx.Node) -> tuple[str, Target, tuple[Any, ...]]:
    return "mish", gates.mish, (z,)


def _glu(x: fx.Node, dim: int = -1) -> tuple[str, Target, tuple[Any, ...]]:
    return "glu", gates.glu, (x, dim % value(x).ndim)


def _softplus(z: fx.Node, beta: float = 1.0, threshold: float = 20.0) -> tuple[str, Target, tuple[Any, ...]]:
    return "softplus", gates.softplus, (z, float(beta), float(threshold))


def _layer_norm(
    x: fx.Node,
    normalized_shape: Sequence[int],
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> tuple[str, Target, tuple[Any, ...]]:
    return "layer_norm", gates.layer_norm, (x, list(normalized_shape), weight, bias, eps)


def _group_norm(
    x: fx.Node,
    groups: int,
    weight: fx.Node | None = None,
    bias: fx.Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> tuple[str, Target, tuple[Any, ...]]:
    return "group_norm", gates.group_norm, (x, groups, weight, bias, eps)


def _rms_norm(
    x: fx.Node, normalized_shape: Sequence[int], weight: fx.Node | None = None, eps: float | None = None
) -> tuple[str, Target, tuple[Any, ...]]:
    eps = torch.finfo(value(x).dtype).eps if eps is None else eps
    return "rms_norm", gates.rms_norm, (x, list(normalized_shape), weight, eps)


def _max_pool2d(z: fx.Node, *options: Any) -> tuple[str, Target, tuple[Any, ...]]:
    return "max_pool", gates.max_pool2d, (z, *options)


RECOGNISERS: dict[Target, Recogniser] = {
    aten.relu.default: _relu,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp_min.default: _clamp,
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
}
