"""Batch norms in eval mode are affine maps per channel; most vanish into the convolution before them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, parameter, value
from sptrace.compiler.graph.facts import facts
from sptrace.errors import UnsupportedError

aten = torch.ops.aten

CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}


def fold_batch_norms(module: fx.GraphModule) -> int:
    """Rewrite batch norms; returns how many.

    scale = weight / sqrt(running_var + eps) and shift = bias - running_mean scale, computed in float64.

    1. batch_norm(conv(x, w, b)), the convolution read by nothing else  ->  conv(x, w scale, b scale + shift)
    2. batch_norm(x) otherwise                                         ->  x scale + shift

    The pullback is taken afterwards, so the folded weights serve both directions. Where weight and bias are no
    constants, scale and shift are computed in the graph, and 2. applies.
    """
    builder = GraphBuilder(module)
    norms = [node for node in module.graph.nodes if node.target == aten.batch_norm.default]
    for norm in norms:
        if any(isinstance(given, fx.Node) and given.op != "get_attr" for given in norm.args[1:3]):
            _apply_varying(builder, norm, *norm.args)
            continue
        scale, shift = _affine(module, norm, *norm.args)
        source = norm.args[0]
        if source.target in CONVOLUTIONS and len(source.users) == 1 and _constant_weights(source):
            with builder.replacing(norm):
                builder.replace(norm, _fold(builder, source, scale, shift, *source.args))
        else:
            with builder.replacing(norm):
                sizes = [1, -1] + [1] * (value(norm).ndim - 2)
                path = facts(norm).path or norm.name
                factor = builder.constant(f"{path}.scale", scale.reshape(sizes).float())
                offset = builder.constant(f"{path}.shift", shift.reshape(sizes).float())
                scaled = builder.call(aten.mul.Tensor, source, factor)
                builder.replace(norm, builder.call(aten.add.Tensor, scaled, offset))
    module.graph.eliminate_dead_code()
    return len(norms)


def _affine(
    module: fx.GraphModule,
    norm: fx.Node,
    _x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    mean: fx.Node | None,
    variance: fx.Node | None,
    training: bool,
    _momentum: float,
    eps: float,
    _cudnn_enabled: bool,
) -> tuple[Tensor, Tensor]:
    """Scale and shift per channel, float64."""
    if training or mean is None or variance is None:
        raise UnsupportedError(
            f"the batch norm {facts(norm).path!r} uses the statistics of its batch: "
            "one picture's explanation would depend on the others; "
            "use running statistics (track_running_stats=True, eval mode)"
        )
    scale = 1.0 / torch.sqrt(parameter(module, variance).double() + eps)
    if weight is not None:
        scale = scale * parameter(module, weight).double()
    shift = -parameter(module, mean).double() * scale
    if bias is not None:
        shift = shift + parameter(module, bias).double()
    return scale, shift


def _apply_varying(
    builder: GraphBuilder,
    norm: fx.Node,
    source: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    *statistics: Any,
) -> None:
    """(x - mean) / sqrt(variance + eps), times weight, plus bias: weight or bias are computed by the graph."""
    scale, shift = _affine(builder.module, norm, source, None, None, *statistics)
    sizes = [1, -1] + [1] * (value(norm).ndim - 2)
    path = facts(norm).path or norm.name
    with builder.replacing(norm):
        standard = (
            builder.constant(f"{path}.standard_scale", scale.float()),
            builder.constant(f"{path}.standard_shift", shift.float()),
        )
        result = source
        for factor, term in (standard, (weight, bias)):
            if factor is not None:
                result = builder.call(aten.mul.Tensor, result, builder.reshape(factor, sizes))
            if term is not None:
                result = builder.call(aten.add.Tensor, result, builder.reshape(term, sizes))
        builder.replace(norm, result)


def _constant_weights(convolution: fx.Node) -> bool:
    return all(argument.op == "get_attr" for argument in convolution.all_input_nodes[1:])


def _fold(
    builder: GraphBuilder,
    convolution: fx.Node,
    scale: Tensor,
    shift: Tensor,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    *options: Any,
) -> fx.Node:
    assert callable(convolution.target)
    data = parameter(builder.module, weight).double()
    folded_weight = data * scale.reshape([-1] + [1] * (data.ndim - 1))
    folded_bias = shift if bias is None else parameter(builder.module, bias).double() * scale + shift
    path = facts(convolution).path or convolution.name
    with builder.origin(convolution, adjoint=False):
        return builder.call(
            convolution.target,
            x,
            builder.constant(f"{path}.folded_weight", folded_weight.float()),
            builder.constant(f"{path}.folded_bias", folded_bias.float()),
            *options,
        )
