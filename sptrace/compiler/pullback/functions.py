"""Smooth functions of one number. Where they gate nothing they have their ordinary derivative."""

from __future__ import annotations

import math

from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.term import Term
from sptrace.errors import UnsupportedError


@adjoint(aten.sigmoid.default)
def sigmoid(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = y (1 - y)."""
    value = Term(pull, y)
    yield x, (value * (1 - value) * Term(pull, v)).node


@adjoint(aten.hardsigmoid.default)
def hardsigmoid(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / 6 where -3 < x < 3."""
    number = Term(pull, x)
    inside = pull.call(aten.logical_and.default, (number > -3).node, (number < 3).node)
    yield x, Term(pull, inside).where(Term(pull, v) / 6, 0.0).node


@adjoint(aten.tanh.default)
def tanh(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 - y^2."""
    value = Term(pull, y)
    yield x, ((1 - value * value) * Term(pull, v)).node


@adjoint(aten.exp.default)
def exp(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = y."""
    yield x, (Term(pull, v) * Term(pull, y)).node


@adjoint(aten.log.default)
def log(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / x."""
    yield x, pull.at_pole((Term(pull, v) / Term(pull, x)).node)


@adjoint(aten.erf.default)
def erf(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 2 / sqrt(pi) exp(-x^2)."""
    number = Term(pull, x)
    yield x, ((number * number * -1.0).exp() * (2 / math.sqrt(math.pi)) * Term(pull, v)).node


@adjoint(aten.sqrt.default)
def sqrt(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / (2 y)."""
    yield x, pull.at_pole((Term(pull, v) * 0.5 / Term(pull, y)).node)


@adjoint(gates.root)
def root(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, order: float) -> Cotangents:
    """y' = y / (order x), and 0 at 0: a norm has 0 for its subgradient there, and so has a standard deviation."""
    value = Term(pull, y)
    if order == 2:
        slope = Term(pull, v) * 0.5 / value
    else:
        slope = Term(pull, v) * (1 / order) * Term(pull, pull.call(aten.pow.Tensor_Scalar, x, 1 / order - 1))
    yield x, (value > 0).where(slope, 0.0).node


@adjoint(aten.rsqrt.default)
def rsqrt(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = -y^3 / 2."""
    value = Term(pull, y)
    yield x, pull.at_pole((value * value * value * -0.5 * Term(pull, v)).node)


@adjoint(aten.pow.Tensor_Scalar)
def power(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, exponent: float) -> Cotangents:
    """y' = p x^(p - 1), which has a pole at 0 if p < 1; x^0 is a constant."""
    if exponent == 0:
        yield x, pull.call(aten.zeros_like.default, v)
        return
    lower = Term(pull, pull.call(aten.pow.Tensor_Scalar, x, exponent - 1))
    part = (Term(pull, v) * lower * exponent).node
    yield x, part if exponent >= 1 else pull.at_pole(part)


@adjoint(aten.pow.Tensor_Tensor)
def power_of_tensors(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, exponent: fx.Node) -> Cotangents:
    """y' = p x^(p - 1) in x, 0 where p = 0; y log x in p, 0 where x = 0 and p >= 0."""
    base, power, cotangent = Term(pull, x), Term(pull, exponent), Term(pull, v)
    if pull.needs(x):
        lower = Term(pull, pull.call(aten.pow.Tensor_Tensor, x, (power - 1.0).node))
        constant = power.equals(0)
        slope = constant.where(Term(pull, pull.call(aten.zeros_like.default, v)), cotangent * (power * lower))
        yield x, pull.unbroadcast(pull.at_pole(slope.node), x)
    if pull.needs(exponent):
        slope = cotangent * (Term(pull, y) * Term(pull, pull.call(aten.log.default, x)))
        nothing = pull.call(
            aten.logical_and.default, base.equals(0).node, pull.call(aten.ge.Scalar, exponent, 0)
        )
        part = pull.call(aten.where.ScalarSelf, nothing, 0.0, slope.node)
        yield exponent, pull.unbroadcast(pull.at_pole(part), exponent)


@adjoint(aten.pow.Scalar)
def power_of_number(pull: Pull, v: fx.Node, y: fx.Node, base: float, x: fx.Node) -> Cotangents:
    """y' = y log(base); of base 0 PyTorch says 0."""
    if base < 0:
        raise UnsupportedError("a number below 0 has no powers but whole ones")
    if base == 0:
        yield x, pull.call(aten.zeros_like.default, v)
        return
    yield x, (Term(pull, v) * Term(pull, y) * math.log(base)).node


@adjoint(aten.expm1.default)
def expm1(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = y + 1."""
    yield x, (Term(pull, v) * (Term(pull, y) + 1.0)).node


@adjoint(aten.log1p.default)
def log1p(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / (1 + x)."""
    yield x, pull.at_pole((Term(pull, v) / (Term(pull, x) + 1.0)).node)


@adjoint(aten.xlogy.Tensor)
def xlogy(pull: Pull, v: fx.Node, y: fx.Node, a: fx.Node, b: fx.Node) -> Cotangents:
    """y = a log b, 0 where a = 0, gives a* = v log b, 0 where a = 0 and b <= 0, and b* = v a / b."""
    if pull.needs(a):
        slope = Term(pull, v) * Term(pull, pull.call(aten.log.default, b))
        nothing = pull.call(
            aten.logical_and.default, Term(pull, a).equals(0).node, pull.call(aten.le.Scalar, b, 0)
        )
        part = pull.call(aten.where.ScalarSelf, nothing, 0.0, slope.node)
        yield a, pull.unbroadcast(pull.at_pole(part), a)
    if pull.needs(b):
        part = (Term(pull, v) * Term(pull, a) / Term(pull, b)).node
        yield b, pull.unbroadcast(pull.at_pole(part), b)


@adjoint(aten.abs.default)
def absolute(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = the sign of x, 0 at 0."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.sign.default, x))).node


@adjoint(aten.sign.default, aten.sgn.default, aten.floor.default, aten.ceil.default, aten.round.default)
def step(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 0, on the steps too."""
    yield x, None


@adjoint(aten.detach.default)
def detach(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """The network itself lets no cotangent through."""
    yield x, None
