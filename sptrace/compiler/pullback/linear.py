"""Matrix products. A product of two tensors that both depend on the image has the ordinary adjoint in both."""

from __future__ import annotations

from torch import fx

from sptrace.compiler.graph.builder import aten, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint


@adjoint(aten.linear.default)
def linear(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None
) -> Cotangents:
    """y = x W^T + b gives x* = v W."""
    yield x, pull.call(aten.matmul.default, v, weight)


@adjoint(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default)
def matmul(pull: Pull, v: fx.Node, y: fx.Node, a: fx.Node, b: fx.Node) -> Cotangents:
    """y = a b gives a* = v b^T and b* = a^T v, summed over broadcast batch dimensions.

    A vector on the left is a row, on the right a column; y lacks its dimension of size 1.
    """
    row, column = value(a).ndim == 1, value(b).ndim == 1
    left = pull.call(aten.unsqueeze.default, a, 0) if row else a
    right = pull.call(aten.unsqueeze.default, b, 1) if column else b
    v = pull.call(aten.unsqueeze.default, v, -1) if column else v
    v = pull.call(aten.unsqueeze.default, v, -2) if row else v
    if pull.needs(a):
        part = pull.call(aten.matmul.default, v, _transposed(pull, right))
        yield a, pull.unbroadcast(part, a)
    if pull.needs(b):
        part = pull.call(aten.matmul.default, _transposed(pull, left), v)
        yield b, pull.unbroadcast(pull.call(aten.squeeze.dim, part, -1) if column else part, b)


@adjoint(aten.addmm.default)
def addmm(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    c: fx.Node,
    a: fx.Node,
    b: fx.Node,
    *,
    beta: float = 1,
    alpha: float = 1,
) -> Cotangents:
    """y = beta c + alpha a b."""
    if pull.needs(c):
        yield c, pull.unbroadcast(pull.times(v, beta), c)
    yield from matmul(pull, pull.times(v, alpha), y, a, b)


def _transposed(pull: Pull, matrix: fx.Node) -> fx.Node:
    return pull.call(aten.transpose.int, matrix, -2, -1)
