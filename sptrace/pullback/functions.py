"""Smooth functions of one number. Where they gate nothing they have their ordinary derivative."""

from __future__ import annotations

import math

from torch import fx

from sptrace import gates
from sptrace.pullback.table import Cotangents, Pull, adjoint, aten
from sptrace.pullback.term import Term


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


@adjoint(aten.sin.default)
def sin(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = cos x."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.cos.default, x))).node


@adjoint(aten.cos.default)
def cos(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = -sin x."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.sin.default, x)) * -1.0).node


@adjoint(aten.abs.default)
def absolute(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = the sign of x, 0 at 0."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.sign.default, x))).node


@adjoint(aten.detach.default)
def detach(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """The network itself lets no cotangent through."""
    yield x, None
