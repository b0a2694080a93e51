"""Ops that say in one word what several simpler ops say become those."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, parameter, shape, static_shape, value
from sptrace.compiler.graph.facts import Target
from sptrace.passes.canonicalize_functions import finite
from sptrace.passes.rewriting import Rewrite, rewrite_by

aten = torch.ops.aten

Dims = Sequence[int] | int | None


def canonicalize_compositions(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1.  square(x), pow(x, 2), pow(x, 0.5)   ->  mul(x, x), sqrt(x)
    2.  addcmul(x, a, b), addcdiv, baddbmm  ->  x + a b, x + a / b, beta c + alpha a b
        addbmm, addmv, bilinear                 and alike
    3.  instance_norm(x) without statistics ->  group_norm(x, channels)
    4.  prelu(x, w)                         ->  _prelu_kernel(x, w with a size for every dimension of x)
    5.  softmax(x, dim, dtype)              ->  softmax(x, dim)
    6.  log_softmax, log_sigmoid, logsumexp ->  x - m - log(sum(exp(x - m))), -softplus(-x), m + log(sum(exp(x - m)))
    7.  pixel_shuffle, pixel_unshuffle      ->  reshape and permute
    8.  clamp(x, low, high), bounds tensors ->  minimum(maximum(x, low), high); an infinite number bounds nothing
    """
    return rewrite_by(REWRITES, module)


def _square(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return builder.call(aten.mul.Tensor, x, x)


def _power(builder: GraphBuilder, node: fx.Node, x: fx.Node, exponent: float) -> fx.Node | None:
    if exponent == 2:
        return _square(builder, node, x)
    return builder.call(aten.sqrt.default, x) if exponent == 0.5 else None


def _addcmul(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, a: fx.Node, b: fx.Node, *, value: float = 1
) -> fx.Node:
    return builder.call(aten.add.Tensor, x, builder.call(aten.mul.Tensor, a, b), **_alpha(value))


def _addcdiv(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, a: fx.Node, b: fx.Node, *, value: float = 1
) -> fx.Node:
    return builder.call(aten.add.Tensor, x, builder.call(aten.div.Tensor, a, b), **_alpha(value))


def _alpha(number: float) -> dict[str, float]:
    return {} if number == 1 else {"alpha": number}


def _baddbmm(
    builder: GraphBuilder,
    node: fx.Node,
    c: fx.Node,
    a: fx.Node,
    b: fx.Node,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> fx.Node:
    product = builder.call(aten.matmul.default, a, b)
    scaled = product if alpha == 1 else builder.call(aten.mul.Tensor, product, alpha)
    return builder.call(aten.add.Tensor, scaled, c, **_alpha(beta))


def _addbmm(
    builder: GraphBuilder,
    node: fx.Node,
    c: fx.Node,
    a: fx.Node,
    b: fx.Node,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> fx.Node:
    static_shape(a, [0])
    product = builder.call(aten.sum.dim_IntList, builder.call(aten.matmul.default, a, b), [0])
    scaled = product if alpha == 1 else builder.call(aten.mul.Tensor, product, alpha)
    return builder.call(aten.add.Tensor, scaled, c, **_alpha(beta))


def _bilinear(
    builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node, weight: fx.Node, bias: fx.Node | None = None
) -> fx.Node:
    """y_o = sum of a_i w_oij b_j, first over i."""
    outputs, rows, columns = static_shape(weight, [0, 1, 2])
    turned = builder.call(aten.permute.default, weight, [1, 0, 2])
    half = builder.call(aten.matmul.default, a, builder.reshape(turned, [rows, outputs * columns]))
    apart = builder.reshape(half, [*shape(a)[:-1], outputs, columns])
    terms = builder.call(aten.mul.Tensor, apart, builder.call(aten.unsqueeze.default, b, value(b).ndim - 1))
    total = builder.call(aten.sum.dim_IntList, terms, [value(terms).ndim - 1])
    return total if bias is None else builder.call(aten.add.Tensor, total, bias)


def _instance_norm(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node | None,
    bias: fx.Node | None,
    mean: fx.Node | None,
    variance: fx.Node | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> fx.Node:
    if not use_input_stats:
        return builder.call(
            aten.batch_norm.default, x, weight, bias, mean, variance, False, momentum, eps, cudnn_enabled
        )
    (channels,) = static_shape(x, [1])
    return builder.call(aten.group_norm.default, x, channels, weight, bias, eps)


def _prelu(builder: GraphBuilder, node: fx.Node, x: fx.Node, weight: fx.Node) -> fx.Node:
    spread = builder.reshape(weight, [-1] + [1] * (value(x).ndim - 2)) if value(x).ndim > 1 else weight
    return builder.call(aten._prelu_kernel.default, x, spread)


def _softmax(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, dtype: torch.dtype | None = None
) -> fx.Node | None:
    return builder.call(aten.softmax.int, x, dim) if dtype == value(x).dtype else None


def _log_softmax(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, dtype: torch.dtype | None = None
) -> fx.Node:
    # The peak keeps exp in range; the result does not depend on it, and so it carries no cotangent.
    peak = builder.call(aten.detach.default, builder.call(aten.amax.default, x, [dim], True))
    below = builder.call(aten.sub.Tensor, x, peak)
    total = builder.call(aten.sum.dim_IntList, builder.call(aten.exp.default, below), [dim], True)
    return builder.call(aten.sub.Tensor, below, builder.call(aten.log.default, total))


def _log_sum(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool = False
) -> fx.Node:
    peak = builder.call(aten.detach.default, builder.call(aten.amax.default, x, list(dims), True))
    peak = finite(builder, peak)
    powers = builder.call(aten.exp.default, builder.call(aten.sub.Tensor, x, peak))
    total = builder.call(aten.log.default, builder.call(aten.sum.dim_IntList, powers, list(dims), keepdim))
    return builder.call(aten.add.Tensor, total, builder.reshape(peak, shape(total)))


def _log_sigmoid(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    negative = builder.call(aten.neg.default, x)
    return builder.call(aten.neg.default, builder.call(aten.softplus.default, negative))


def _pixel_shuffle(builder: GraphBuilder, node: fx.Node, x: fx.Node, factor: int) -> fx.Node:
    *batch, _, _, _ = shape(x)
    channels, height, width = static_shape(x, [-3, -2, -1])
    apart = builder.reshape(x, [*batch, channels // factor**2, factor, factor, height, width])
    return builder.reshape(builder.call(aten.permute.default, apart, [0, 1, 4, 2, 5, 3]), shape(node))


def _pixel_unshuffle(builder: GraphBuilder, node: fx.Node, x: fx.Node, factor: int) -> fx.Node:
    *batch, _, _, _ = shape(x)
    channels, height, width = static_shape(x, [-3, -2, -1])
    apart = builder.reshape(x, [*batch, channels, height // factor, factor, width // factor, factor])
    return builder.reshape(builder.call(aten.permute.default, apart, [0, 1, 3, 5, 2, 4]), shape(node))


def _clamp_by_tensors(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, low: fx.Node | None = None, high: fx.Node | None = None
) -> fx.Node:
    """Not clamp by numbers: on a bound that is a tensor PyTorch halves the cotangent, on a number it gives none."""
    clamped = x
    for bound, extremum in ((low, aten.maximum.default), (high, aten.minimum.default)):
        if bound is not None and not _is_infinite(builder, bound):
            clamped = builder.call(extremum, clamped, bound)
    if low is None or high is None or _never_meet(builder, low, high):
        return clamped
    # Equal bounds are no tie of three: x has all on them, else the bound that x is beyond.
    outside = builder.call(aten.where.self, builder.call(aten.lt.Tensor, x, high), low, high)
    alone = builder.call(aten.where.self, builder.call(aten.eq.Tensor, x, high), x, outside)
    return builder.call(aten.where.self, builder.call(aten.eq.Tensor, low, high), alone, clamped)


def _is_infinite(builder: GraphBuilder, bound: fx.Node) -> bool:
    return bound.op == "get_attr" and bool(parameter(builder.module, bound).isinf().all())


def _never_meet(builder: GraphBuilder, low: fx.Node, high: fx.Node) -> bool:
    if low.op != "get_attr" or high.op != "get_attr":
        return False
    return bool((parameter(builder.module, low) != parameter(builder.module, high)).all())


REWRITES: dict[Target, Rewrite] = {
    aten.square.default: _square,
    aten.pow.Tensor_Scalar: _power,
    aten.addcmul.default: _addcmul,
    aten.addcdiv.default: _addcdiv,
    aten.baddbmm.default: _baddbmm,
    aten.addmv.default: _baddbmm,
    aten.addbmm.default: _addbmm,
    aten.bilinear.default: _bilinear,
    aten.instance_norm.default: _instance_norm,
    aten.prelu.default: _prelu,
    aten.softmax.int: _softmax,
    aten._softmax.default: lambda builder, node, x, dim, half: builder.call(aten.softmax.int, x, dim),
    aten.log_softmax.int: _log_softmax,
    aten._log_softmax.default: lambda builder, node, x, dim, half: _log_softmax(builder, node, x, dim),
    aten.log_sigmoid.default: _log_sigmoid,
    aten.logsumexp.default: _log_sum,
    aten.special_logsumexp.default: _log_sum,
    aten.clamp.Tensor: _clamp_by_tensors,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
}
