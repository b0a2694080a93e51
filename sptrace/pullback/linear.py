"""Matrix products. A product of two tensors that both depend on the image has the ordinary adjoint in both."""

from __future__ import annotations

from torch import fx

from sptrace.graph import value
from sptrace.pullback.table import Cotangents, Pull, adjoint, aten


@adjoint(aten.linear.default)
def linear(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None
) -> Cotangents:
    """y = x W^T + b gives x* = v W."""
    yield x, pull.call(aten.matmul.default, v, weight)


@adjoint(aten.matmul.default, aten.mm.default, aten.bmm.default)
def matmul(pull: Pull, v: fx.Node, y: fx.Node, a: fx.Node, b: fx.Node) -> Cotangents:
    """y = a b gives a* = v b^T and b* = a^T v, summed over broadcast batch dimensions."""
    if min(value(a).ndim, value(b).ndim) < 2:
        return  # products with vectors are refused: the walk names the op
    if pull.needs(a):
        yield a, pull.unbroadcast(pull.call(aten.matmul.default, v, _transposed(pull, b)), a)
    if pull.needs(b):
        yield b, pull.unbroadcast(pull.call(aten.matmul.default, _transposed(pull, a), v), b)


@adjoint(aten.addmm.default)
def addmm(pull: Pull, v: fx.Node, y: fx.Node, c: fx.Node, a: fx.Node, b: fx.Node) -> Cotangents:
    """y = c + a b (both scaled by 1; other factors are refused by this signature)."""
    if pull.needs(c):
        yield c, pull.unbroadcast(v, c)
    yield from matmul(pull, v, y, a, b)


def _transposed(pull: Pull, matrix: fx.Node) -> fx.Node:
    return pull.call(aten.transpose.int, matrix, -2, -1)
