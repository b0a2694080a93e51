"""Choosing between numbers: the chosen one gets the cotangent, and what decided gets none."""

from __future__ import annotations

from torch import fx

from sptrace.compiler.graph.builder import aten, shape, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint

Operand = fx.Node | float


@adjoint(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther)
def where(pull: Pull, v: fx.Node, y: fx.Node, condition: fx.Node, a: Operand, b: Operand) -> Cotangents:
    """y = a where the condition holds, else b."""
    yield condition, None
    if isinstance(a, fx.Node) and pull.needs(a):
        yield a, pull.unbroadcast(pull.call(aten.where.ScalarOther, condition, v, 0.0), a)
    if isinstance(b, fx.Node) and pull.needs(b):
        yield b, pull.unbroadcast(pull.call(aten.where.ScalarSelf, condition, 0.0, v), b)


@adjoint(aten.maximum.default, aten.minimum.default)
def extremum(pull: Pull, v: fx.Node, y: fx.Node, a: fx.Node, b: fx.Node) -> Cotangents:
    """y = max(a, b) or min(a, b); equal numbers share v, as in PyTorch."""
    chosen = [pull.call(aten.eq.Tensor, x, y) for x in (a, b)]
    shares = [pull.call(aten.to.dtype, one, value(v).dtype) for one in chosen]
    each = pull.call(aten.div.Tensor, v, pull.call(aten.add.Tensor, *shares))
    for x, one in zip((a, b), chosen, strict=True):
        if pull.needs(x):
            yield x, pull.unbroadcast(pull.through(each, one), x)


@adjoint(aten.gather.default)
def gather(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, index: fx.Node, *, sparse_grad: bool = False
) -> Cotangents:
    """y_i = x_index(i): every number gets the sum of what was read of it; the places come from the forward pass."""
    pull.sizes(x, [dim])
    yield x, pull.call(aten.scatter_add.default, pull.call(aten.zeros_like.default, x), dim, index, v)


@adjoint(aten.scatter_add.default)
def scatter_add(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, index: fx.Node, added: fx.Node
) -> Cotangents:
    """y = x, and at index(i) what is added there: both get what stands at their places."""
    pull.sizes(x, [dim])
    yield x, v
    if shape(added) == shape(index):
        yield added, pull.call(aten.gather.default, v, dim, index)


@adjoint(aten.scatter.src, aten.scatter.value)
def scatter(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, index: fx.Node, written: Operand
) -> Cotangents:
    """y = x but at index(i), where other numbers were written; of several there each gets v, as in PyTorch."""
    pull.sizes(x, [dim])
    yield x, pull.call(aten.scatter.value, v, dim, index, 0.0)
    if isinstance(written, fx.Node) and shape(written) == shape(index):
        yield written, pull.call(aten.gather.default, v, dim, index)
