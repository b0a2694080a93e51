"""Trigonometric and hyperbolic functions and their inverses, with their ordinary derivatives."""

from __future__ import annotations

from torch import fx

from sptrace.compiler.graph.builder import aten
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.term import Term


@adjoint(aten.sin.default)
def sin(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = cos x."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.cos.default, x))).node


@adjoint(aten.cos.default)
def cos(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = -sin x."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.sin.default, x)) * -1.0).node


@adjoint(aten.tan.default)
def tan(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 + y^2."""
    value = Term(pull, y)
    yield x, (Term(pull, v) * (value * value + 1.0)).node


@adjoint(aten.sinh.default)
def sinh(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = cosh x."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.cosh.default, x))).node


@adjoint(aten.cosh.default)
def cosh(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = sinh x."""
    yield x, (Term(pull, v) * Term(pull, pull.call(aten.sinh.default, x))).node


@adjoint(aten.asin.default)
def asin(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / sqrt(1 - x^2)."""
    number = Term(pull, x)
    yield x, pull.at_pole((Term(pull, v) * (1 - number * number).rsqrt()).node)


@adjoint(aten.acos.default)
def acos(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = -1 / sqrt(1 - x^2)."""
    number = Term(pull, x)
    yield x, pull.at_pole((Term(pull, v) * (1 - number * number).rsqrt() * -1.0).node)


@adjoint(aten.atan.default)
def atan(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / (1 + x^2)."""
    number = Term(pull, x)
    yield x, (Term(pull, v) / (number * number + 1.0)).node


@adjoint(aten.asinh.default)
def asinh(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / sqrt(x^2 + 1)."""
    number = Term(pull, x)
    yield x, (Term(pull, v) * (number * number + 1.0).rsqrt()).node


@adjoint(aten.acosh.default)
def acosh(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / sqrt(x^2 - 1)."""
    number = Term(pull, x)
    yield x, pull.at_pole((Term(pull, v) * (number * number + -1.0).rsqrt()).node)


@adjoint(aten.atanh.default)
def atanh(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node) -> Cotangents:
    """y' = 1 / (1 - x^2)."""
    number = Term(pull, x)
    yield x, pull.at_pole((Term(pull, v) / (1 - number * number)).node)


@adjoint(aten.atan2.default)
def atan2(pull: Pull, v: fx.Node, y: fx.Node, a: fx.Node, b: fx.Node) -> Cotangents:
    """The angle of the point (b, a) gives a* = v b / (a^2 + b^2) and b* = -v a / (a^2 + b^2); 0 in the origin."""
    first, second = Term(pull, a), Term(pull, b)
    square = first * first + second * second
    part = (square > 0).where(Term(pull, v) / square, 0.0)
    if pull.needs(a):
        yield a, pull.unbroadcast((part * second).node, a)
    if pull.needs(b):
        yield b, pull.unbroadcast((part * first * -1.0).node, b)
