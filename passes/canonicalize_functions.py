"""Functions of one or two numbers, and small rearrangements, that a few simpler ops say as well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_extrema import values_replaced
from sptrace.passes.rewriting import Rewrite, rewrite_by

aten = torch.ops.aten


def canonicalize_functions(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1.  log2(x), log10, logaddexp(x, y)      ->  log(x) / log(2), m + log(exp(x - m) + exp(y - m))
    2.  exp2(x), deg2rad, erfc               ->  pow(2, x), mul(x, pi / 180), 1 - erf(x)
    3.  logit(x, eps), sinc, hypot, entr     ->  log(t / (1 - t)) with t within [eps, 1 - eps], sin(pi x) / (pi x), ...
    4.  lerp(x, y, w)                        ->  x + w (y - x)
    5.  threshold, hardshrink, softshrink,   ->  where
        nan_to_num, nansum, tril, triu
    6.  rrelu(x) in eval mode                ->  leaky_relu(x, the mean of its slopes)
    7.  frac(x), fmod(x, s), remainder, x // s, round(x, decimals)  ->  by trunc, floor and round
    8.  trunc(x)                             ->  where(x < 0, ceil(x), floor(x))
    9.  prod(x, dim)                         ->  products of halves of x
    10. cumprod(x, dim), logcumsumexp        ->  x times x one place on, that times itself two places on, then four ...
        cummax(x, dim), cummin, whose values are read
    11. rot90, channel_shuffle               ->  flip and transpose; reshape and permute
    12. cross(x, y)                          ->  x y' - x' y of numbers one place and two places on
    """
    return rewrite_by(REWRITES, module)


def _logarithm(base: float) -> Rewrite:
    return lambda builder, node, x: builder.call(
        aten.mul.Tensor, builder.call(aten.log.default, x), 1 / math.log(base)
    )


def _scaled(factor: float) -> Rewrite:
    return lambda builder, node, x: builder.call(aten.mul.Tensor, x, factor)


def _exp2(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return builder.call(aten.pow.Scalar, 2.0, x)


def _erfc(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return builder.call(aten.rsub.Scalar, builder.call(aten.erf.default, x), 1.0)


def finite(builder: GraphBuilder, peak: fx.Node) -> fx.Node:
    """The peak, 0 where it is infinite: infinity less itself is not a number."""
    infinite = builder.call(aten.eq.Scalar, builder.call(aten.abs.default, peak), math.inf)
    return builder.call(aten.where.ScalarSelf, infinite, 0.0, peak)


def _add_powers(base: float) -> Rewrite:
    def rewrite(builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
        # The peak keeps the powers in range; the result does not depend on it, and so it carries no cotangent.
        peak = finite(builder, builder.call(aten.detach.default, builder.call(aten.maximum.default, a, b)))
        powers = []
        for x in (a, b):
            below = builder.call(aten.sub.Tensor, x, peak)
            powers.append(
                builder.call(aten.exp.default, builder.call(aten.mul.Tensor, below, math.log(base)))
            )
        total = builder.call(aten.log.default, builder.call(aten.add.Tensor, *powers))
        return builder.call(aten.add.Tensor, builder.call(aten.mul.Tensor, total, 1 / math.log(base)), peak)

    return rewrite


def _logit(builder: GraphBuilder, node: fx.Node, x: fx.Node, eps: float | None = None) -> fx.Node:
    if eps is not None:  # on the bounds the cotangent passes, other than through a clamp
        for compare, bound in ((aten.lt.Scalar, eps), (aten.gt.Scalar, 1 - eps)):
            x = builder.call(aten.where.ScalarSelf, builder.call(compare, x, bound), bound, x)
    return builder.call(
        aten.log.default, builder.call(aten.div.Tensor, x, builder.call(aten.rsub.Scalar, x, 1.0))
    )


def _sinc(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    at_zero = builder.call(aten.eq.Scalar, x, 0)
    angle = builder.call(aten.mul.Tensor, builder.call(aten.where.ScalarSelf, at_zero, 1.0, x), math.pi)
    ratio = builder.call(aten.div.Tensor, builder.call(aten.sin.default, angle), angle)
    return builder.call(aten.where.ScalarSelf, at_zero, 1.0, ratio)


def _entropy(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    inside = builder.call(aten.where.ScalarSelf, builder.call(aten.le.Scalar, x, 0), 1.0, x)
    return builder.call(
        aten.neg.default, builder.call(aten.mul.Tensor, inside, builder.call(aten.log.default, inside))
    )


def _times_log1p(builder: GraphBuilder, node: fx.Node, x: fx.Node, y: fx.Node) -> fx.Node:
    return builder.call(aten.mul.Tensor, x, builder.call(aten.log1p.default, y))


def _hypot(builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node) -> fx.Node:
    squares = [builder.call(aten.mul.Tensor, x, x) for x in (a, b)]
    return builder.call(aten.sqrt.default, builder.call(aten.add.Tensor, *squares))


def _lerp(builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node, weight: fx.Node | float) -> fx.Node:
    way = builder.call(aten.mul.Tensor, builder.call(aten.sub.Tensor, b, a), weight)
    return builder.call(aten.add.Tensor, a, way)


def _threshold(builder: GraphBuilder, node: fx.Node, x: fx.Node, threshold: float, fill: float) -> fx.Node:
    if threshold == fill == 0:
        return builder.call(aten.relu.default, x)
    return builder.call(aten.where.ScalarSelf, builder.call(aten.le.Scalar, x, threshold), float(fill), x)


def _hardshrink(builder: GraphBuilder, node: fx.Node, x: fx.Node, width: float = 0.5) -> fx.Node:
    inside = builder.call(aten.le.Scalar, builder.call(aten.abs.default, x), width)
    return builder.call(aten.where.ScalarSelf, inside, 0.0, x)


def _softshrink(builder: GraphBuilder, node: fx.Node, x: fx.Node, width: float = 0.5) -> fx.Node:
    above, below = builder.call(aten.gt.Scalar, x, width), builder.call(aten.lt.Scalar, x, -width)
    risen = builder.call(aten.where.ScalarOther, below, builder.call(aten.add.Tensor, x, float(width)), 0.0)
    return builder.call(aten.where.self, above, builder.call(aten.sub.Tensor, x, float(width)), risen)


def _rrelu(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    generator: None = None,
) -> fx.Node:
    if training:
        where = facts(node).source
        raise UnsupportedError(f"rrelu is active ({where}), so the network is random: call .eval() on it")
    return builder.call(aten.leaky_relu.default, x, (lower + upper) / 2)


def _nan_to_num(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
) -> fx.Node:
    limits = torch.finfo(value(x).dtype)
    result = builder.call(
        aten.where.ScalarSelf, builder.call(aten.ne.Tensor, x, x), 0.0 if nan is None else float(nan), x
    )
    for infinity, number in (
        (math.inf, limits.max if posinf is None else posinf),
        (-math.inf, limits.min if neginf is None else neginf),
    ):
        found = builder.call(aten.eq.Scalar, x, infinity)
        result = builder.call(aten.where.ScalarSelf, found, float(number), result)
    return result


def _triangle(part: Callable[..., torch.Tensor]) -> Rewrite:
    def rewrite(builder: GraphBuilder, node: fx.Node, x: fx.Node, diagonal: int = 0) -> fx.Node:
        inside = part(torch.ones(static_shape(x, [-2, -1]), dtype=torch.bool), diagonal)
        return builder.call(aten.where.ScalarOther, builder.constant("triangle", inside), x, 0.0)

    return rewrite


def _trunc(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    ends = [builder.call(target, x) for target in (aten.ceil.default, aten.floor.default)]
    return builder.call(aten.where.self, builder.call(aten.lt.Scalar, x, 0), *ends)


def _frac(builder: GraphBuilder, node: fx.Node, x: fx.Node) -> fx.Node:
    return builder.call(aten.sub.Tensor, x, _trunc(builder, node, x))


def _quotient(
    builder: GraphBuilder,
    node: fx.Node,
    a: fx.Node,
    b: fx.Node | float,
    *,
    rounding_mode: str | None = "floor",
) -> fx.Node | None:
    if not value(node).is_floating_point():
        return None  # of whole numbers: for places and masks
    exact = builder.call(aten.div.Tensor, a, b)
    if rounding_mode is None:
        return exact
    return (
        builder.call(aten.floor.default, exact) if rounding_mode == "floor" else _trunc(builder, node, exact)
    )


def _rest(rounding_mode: str) -> Rewrite:
    """What a division leaves."""

    def rewrite(builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node | float) -> fx.Node | None:
        times = _quotient(builder, node, a, b, rounding_mode=rounding_mode)
        if times is None:
            return None
        return builder.call(aten.sub.Tensor, a, builder.call(aten.mul.Tensor, times, b))

    return rewrite


def _round(builder: GraphBuilder, node: fx.Node, x: fx.Node, *, decimals: int = 0) -> fx.Node:
    scaled = builder.call(aten.mul.Tensor, x, 10.0**decimals)
    return builder.call(aten.div.Tensor, builder.call(aten.round.default, scaled), 10.0**decimals)


def _product(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    dim: int,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> fx.Node:
    """Half times half, until one number is left: what each factor is multiplied by comes out right, zeros too."""
    (size,) = static_shape(x, [dim])
    rests = []
    while size > 1:
        half, odd = divmod(size, 2)
        if odd:
            rests.append(builder.call(aten.slice.Tensor, x, dim, size - 1, size))
        halves = [builder.call(aten.slice.Tensor, x, dim, start, start + half) for start in (0, half)]
        x, size = builder.call(aten.mul.Tensor, *halves), half
    for rest in rests:
        x = builder.call(aten.mul.Tensor, x, rest)
    return builder.reshape(x, shape(node))


Join = Callable[[GraphBuilder, fx.Node, fx.Node], fx.Node]


def _joined(builder: GraphBuilder, x: fx.Node, dim: int, both: Join) -> fx.Node:
    """All numbers up to each, joined by `both`, in as many steps as the length has binary digits."""
    (size,) = static_shape(x, [dim])
    reach = 1
    while reach < size:
        first, before, behind = (
            builder.call(aten.slice.Tensor, x, dim, *stretch)
            for stretch in ((0, reach), (0, size - reach), (reach, size))
        )
        x = builder.call(aten.cat.default, [first, both(builder, behind, before)], dim)
        reach *= 2
    return x


def _running(both: Join) -> Rewrite:
    def rewrite(
        builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int, *, dtype: torch.dtype | None = None
    ) -> fx.Node:
        return _joined(builder, x, dim, both)

    return rewrite


def _times(builder: GraphBuilder, a: fx.Node, b: fx.Node) -> fx.Node:
    return builder.call(aten.mul.Tensor, a, b)


def _log_of_both(builder: GraphBuilder, a: fx.Node, b: fx.Node) -> fx.Node:
    joint = _add_powers(math.e)(builder, a, a, b)
    assert joint is not None
    return joint


def _running_extremum(compare: Target) -> Rewrite:
    def later(builder: GraphBuilder, behind: fx.Node, before: fx.Node) -> fx.Node:
        return builder.call(aten.where.self, builder.call(compare, behind, before), behind, before)

    def rewrite(builder: GraphBuilder, node: fx.Node, x: fx.Node, dim: int) -> fx.Node | None:
        """Of equal numbers the last has the cotangent, as in PyTorch."""
        return values_replaced(builder, node, lambda: _joined(builder, x, dim, later))

    return rewrite


def _cross(builder: GraphBuilder, node: fx.Node, a: fx.Node, b: fx.Node, *, dim: int = -1) -> fx.Node:
    orders = [builder.constant("cross.order", torch.tensor(order)) for order in ([1, 2, 0], [2, 0, 1])]
    dim = dim % value(node).ndim - value(node).ndim
    (a1, a2), (b1, b2) = (
        [builder.call(aten.index_select.default, x, value(x).ndim + dim, order) for order in orders]
        for x in (a, b)
    )
    return builder.call(aten.sub.Tensor, _times(builder, a1, b2), _times(builder, a2, b1))


def _nansum(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> fx.Node:
    numbers = builder.call(aten.where.ScalarSelf, builder.call(aten.ne.Tensor, x, x), 0.0, x)
    reduced = list(dims) if dims else list(range(value(x).ndim))
    static_shape(x, reduced)
    return builder.call(aten.sum.dim_IntList, numbers, reduced, keepdim)


def _rot90(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, times: int = 1, dims: Sequence[int] = (0, 1)
) -> fx.Node:
    first, second = dims
    if times % 4 == 0:
        return x
    if times % 2 == 0:
        return builder.call(aten.flip.default, x, [first, second])
    turned = builder.call(aten.flip.default, x, [second if times % 4 == 1 else first])
    return builder.call(aten.transpose.int, turned, first, second)


def _channel_shuffle(builder: GraphBuilder, node: fx.Node, x: fx.Node, groups: int) -> fx.Node:
    batch, _, *rest = shape(x)
    (channels,) = static_shape(x, [1])
    apart = builder.reshape(x, [batch, groups, channels // groups, *rest])
    return builder.reshape(builder.call(aten.transpose.int, apart, 1, 2), shape(x))


REWRITES: dict[Target, Rewrite] = {
    aten.special_entr.default: _entropy,
    aten.special_xlog1py.default: _times_log1p,
    aten.log2.default: _logarithm(2),
    aten.log10.default: _logarithm(10),
    aten.deg2rad.default: _scaled(math.pi / 180),
    aten.rad2deg.default: _scaled(180 / math.pi),
    aten.exp2.default: _exp2,
    aten.erfc.default: _erfc,
    aten.special_erfc.default: _erfc,
    aten.logaddexp.default: _add_powers(math.e),
    aten.logaddexp2.default: _add_powers(2.0),
    aten.logit.default: _logit,
    aten.special_logit.default: _logit,
    aten.sinc.default: _sinc,
    aten.special_sinc.default: _sinc,
    aten.hypot.default: _hypot,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.threshold.default: _threshold,
    aten.hardshrink.default: _hardshrink,
    aten.softshrink.default: _softshrink,
    aten.rrelu.default: _rrelu,
    aten.nan_to_num.default: _nan_to_num,
    aten.tril.default: _triangle(torch.tril),
    aten.triu.default: _triangle(torch.triu),
    aten.trunc.default: _trunc,
    aten.fix.default: _trunc,
    aten.frac.default: _frac,
    aten.div.Tensor_mode: _quotient,
    aten.div.Scalar_mode: _quotient,
    aten.floor_divide.default: _quotient,
    aten.floor_divide.Scalar: _quotient,
    aten.fmod.Scalar: _rest("trunc"),
    aten.fmod.Tensor: _rest("trunc"),
    aten.remainder.Scalar: _rest("floor"),
    aten.remainder.Tensor: _rest("floor"),
    aten.round.decimals: _round,
    aten.prod.dim_int: _product,
    aten.cumprod.default: _running(_times),
    aten.logcumsumexp.default: _running(_log_of_both),
    aten.cummax.default: _running_extremum(aten.ge.Tensor),
    aten.cummin.default: _running_extremum(aten.le.Tensor),
    aten.linalg_cross.default: _cross,
    aten.nansum.default: _nansum,
    aten.rot90.default: _rot90,
    aten.channel_shuffle.default: _channel_shuffle,
}
