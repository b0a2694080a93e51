"""Ops that say in one word what several simpler ops say become those."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from sptrace import gates
from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder, Target, parameter, shape, static_shape, value

aten = torch.ops.aten

Dims = Sequence[int] | int | None


def canonicalize_compositions(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1.  square(x), pow(x, 2), pow(x, 0.5)   ->  mul(x, x), sqrt(x)
    2.  addcmul(x, a, b), addcdiv, baddbmm  ->  x + a b, x + a / b, beta c + alpha a b
    3.  linalg_vector_norm(x, 2, dims), norm  ->  root(sum(x x), 2); of order 1: sum(abs(x))
    4.  var, std                            ->  the mean square of x - mean(x), and its root
    5.  max(x, dim), whose values are read  ->  first_maximum(x, dim)
    6.  instance_norm(x) without statistics ->  group_norm(x, channels)
    7.  prelu(x, w)                         ->  _prelu_kernel(x, w with a size for every dimension of x)
    8.  softmax(x, dim, dtype)              ->  softmax(x, dim)
    9.  log_softmax, log_sigmoid            ->  x - m - log(sum(exp(x - m))), -softplus(-x)
    10. adaptive_avg_pool1d, avg_pool1d     ->  the same with a height of 1
    11. pixel_shuffle, pixel_unshuffle      ->  reshape and permute
    12. clamp(x, low, high), bounds tensors ->  minimum(maximum(x, low), high); an infinite number bounds nothing
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in REWRITES:
            continue
        with builder.replacing(node):
            new = REWRITES[node.target](builder, node, *node.args, **node.kwargs)
        if new is not None:
            builder.replace(node, new)
            count += 1
    return count


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


def _vector_norm(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    order: float | None = 2,
    dims: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> fx.Node | None:
    reduced = _dims(x, dims)
    if order == 1:
        return builder.call(aten.sum.dim_IntList, builder.call(aten.abs.default, x), reduced, keepdim)
    if order not in (2, None):
        return None
    total = builder.call(aten.sum.dim_IntList, _square(builder, node, x), reduced, keepdim)
    return builder.call(gates.root, total, 2)


def _variance(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    dims: Dims = None,
    *options: bool,
    correction: float | None = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> fx.Node:
    if options:
        unbiased, keepdim = (*options, keepdim)[:2]
    less = float(unbiased) if correction is None else correction
    reduced = _dims(x, dims)
    count = 1
    for size in static_shape(x, reduced):
        count *= size
    deviation = builder.call(aten.sub.Tensor, x, builder.call(aten.mean.dim, x, reduced, True))
    mean = builder.call(aten.mean.dim, _square(builder, node, deviation), reduced, keepdim)
    return mean if less == 0 else builder.call(aten.mul.Tensor, mean, count / (count - less))


def _deviation(builder: GraphBuilder, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    return builder.call(gates.root, _variance(builder, node, *args, **kwargs), 2)


def _maximum(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False
) -> fx.Node | None:
    """Both results are replaced at their readers, if these read only the values."""
    if any(user.args[1] != 0 for user in node.users):
        return None
    largest = builder.call(gates.first_maximum, x, dim, keepdim)
    for user in list(node.users):
        builder.replace(user, largest)
    return largest


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
    return builder.call(aten.group_norm.default, x, value(x).shape[1], weight, bias, eps)


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


def _log_sigmoid(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    negative = builder.call(aten.neg.default, x)
    return builder.call(aten.neg.default, builder.call(aten.softplus.default, negative))


def _adaptive_average_1d(builder: GraphBuilder, node: fx.Node, x: fx.Node, size: Sequence[int]) -> fx.Node:
    flat = builder.call(aten.adaptive_avg_pool2d.default, _with_height(builder, x), [1, *size])
    return builder.reshape(flat, shape(node))


def _average_1d(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> fx.Node:
    flat = builder.call(
        aten.avg_pool2d.default,
        _with_height(builder, x),
        [1, *kernel],
        [1, *(stride or kernel)],
        [0, *padding],
        ceil_mode,
        count_include_pad,
    )
    return builder.reshape(flat, shape(node))


def _with_height(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    sizes = shape(x)
    return builder.reshape(x, [*sizes[:-1], 1, sizes[-1]])


def _pixel_shuffle(builder: GraphBuilder, node: fx.Node, x: fx.Node, factor: int) -> fx.Node:
    batch, channels, height, width = shape(x)
    apart = builder.reshape(x, [batch, channels // factor**2, factor, factor, height, width])
    return builder.reshape(builder.call(aten.permute.default, apart, [0, 1, 4, 2, 5, 3]), shape(node))


def _pixel_unshuffle(builder: GraphBuilder, node: fx.Node, x: fx.Node, factor: int) -> fx.Node:
    batch, channels, height, width = shape(x)
    apart = builder.reshape(x, [batch, channels, height // factor, factor, width // factor, factor])
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


def _dims(x: fx.Node, dims: Dims) -> list[int]:
    if isinstance(dims, int):
        return [dims]
    reduced = list(dims) if dims else list(range(value(x).ndim))
    if -1 in [shape(x)[dim] for dim in reduced]:
        raise UnsupportedError(
            f"{x.name!r} is reduced over the pictures of a batch: reduce each picture alone"
        )
    return reduced


REWRITES: dict[Target, Callable[..., fx.Node | None]] = {
    aten.square.default: _square,
    aten.pow.Tensor_Scalar: _power,
    aten.addcmul.default: _addcmul,
    aten.addcdiv.default: _addcdiv,
    aten.baddbmm.default: _baddbmm,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: _vector_norm,
    aten.var.dim: _variance,
    aten.var.correction: _variance,
    aten.std.dim: _deviation,
    aten.std.correction: _deviation,
    aten.max.dim: _maximum,
    aten.instance_norm.default: _instance_norm,
    aten.prelu.default: _prelu,
    aten.softmax.int: _softmax,
    aten.log_softmax.int: _log_softmax,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.adaptive_avg_pool1d.default: _adaptive_average_1d,
    aten.avg_pool1d.default: _average_1d,
    aten.clamp.Tensor: _clamp_by_tensors,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
}
