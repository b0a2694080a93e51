"""Element-wise arithmetic with broadcasting, and reductions that are linear."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sptrace.compiler.graph.builder import aten, shape, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint

Operand = fx.Node | float


@adjoint(aten.add.Tensor, aten.add.Scalar)
def add(pull: Pull, v: fx.Node, y: fx.Node, a: Operand, b: Operand, alpha: float = 1) -> Cotangents:
    """y = a + alpha b."""
    if isinstance(a, fx.Node) and pull.needs(a):
        yield a, pull.unbroadcast(v, a)
    if isinstance(b, fx.Node) and pull.needs(b):
        yield b, pull.unbroadcast(pull.times(v, alpha), b)


@adjoint(aten.sub.Tensor, aten.sub.Scalar)
def sub(pull: Pull, v: fx.Node, y: fx.Node, a: Operand, b: Operand, alpha: float = 1) -> Cotangents:
    """y = a - alpha b."""
    yield from add(pull, v, y, a, b, alpha=-alpha)


@adjoint(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(pull: Pull, v: fx.Node, y: fx.Node, a: Operand, b: Operand, alpha: float = 1) -> Cotangents:
    """y = b - alpha a."""
    yield from add(pull, v, y, b, a, alpha=-alpha)


@adjoint(aten.neg.default)
def neg(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y = -x."""
    yield x, pull.times(v, -1)


@adjoint(aten.mul.Tensor, aten.mul.Scalar)
def mul(pull: Pull, v: fx.Node, y: fx.Node, a: Operand, b: Operand) -> Cotangents:
    """y = a b: the ordinary product rule in every factor that depends on the image."""
    if isinstance(a, fx.Node) and pull.needs(a):
        yield a, pull.unbroadcast(pull.call(aten.mul.Tensor, v, b), a)
    if isinstance(b, fx.Node) and pull.needs(b):
        yield b, pull.unbroadcast(pull.call(aten.mul.Tensor, v, a), b)


@adjoint(aten.div.Tensor, aten.div.Scalar)
def div(pull: Pull, v: fx.Node, y: fx.Node, a: Operand, b: Operand) -> Cotangents:
    """y = a / b gives a* = v / b and b* = -v y / b."""
    quotient = pull.call(aten.div.Tensor, v, b)
    if pull.needs(b):
        pull.at_pole(quotient)
    if isinstance(a, fx.Node) and pull.needs(a):
        yield a, pull.unbroadcast(quotient, a)
    if isinstance(b, fx.Node) and pull.needs(b):
        yield b, pull.unbroadcast(pull.times(pull.call(aten.mul.Tensor, quotient, y), -1), b)


@adjoint(aten.reciprocal.default)
def reciprocal(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y = 1 / x gives x* = -v y^2."""
    part = pull.times(pull.call(aten.mul.Tensor, pull.call(aten.mul.Tensor, v, y), y), -1)
    yield x, pull.at_pole(part)


@adjoint(aten.clamp.default)
def clamp(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, low: float | None = None, high: float | None = None
) -> Cotangents:
    """A clamp that is no gate (`soften` leaves those alone): v between the bounds, 0 on them as in PyTorch 2.14."""
    for bound, compare in ((low, aten.gt.Scalar), (high, aten.lt.Scalar)):
        if bound is not None:
            v = pull.call(aten.where.ScalarOther, pull.call(compare, x, bound), v, 0.0)
    yield x, v


@adjoint(aten.hardtanh.default)
def hardtanh(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, low: float = -1.0, high: float = 1.0
) -> Cotangents:
    """A Hardtanh that is no gate: a clamp."""
    yield from clamp(pull, v, y, x, low, high)


@adjoint(aten.clamp_min.default)
def clamp_min(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, low: float) -> Cotangents:
    """v where x is above `low`."""
    yield from clamp(pull, v, y, x, low)


@adjoint(aten.clamp_max.default)
def clamp_max(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, high: float) -> Cotangents:
    """v where x is below `high`."""
    yield from clamp(pull, v, y, x, None, high)


@adjoint(aten.sum.dim_IntList)
def sum_(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool = False
) -> Cotangents:
    """y = sum of x over `dims`: every summand gets v."""
    yield x, _spread(pull, v, x, dims)


@adjoint(aten.mean.dim)
def mean(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool = False
) -> Cotangents:
    """y = mean of x over `dims`: every summand gets its share of v."""
    count = 1
    for size in pull.sizes(x, dims):
        count *= size
    yield x, _spread(pull, pull.times(v, 1.0 / count), x, dims)


def _spread(pull: Pull, v: fx.Node, x: fx.Node, dims: Sequence[int]) -> fx.Node:
    pull.sizes(x, dims)
    rank = value(x).ndim
    reduced = {dim % rank for dim in dims}
    kept = [1 if dim in reduced else size for dim, size in enumerate(shape(x))]
    return pull.expand(pull.reshape(v, kept), shape(x))
