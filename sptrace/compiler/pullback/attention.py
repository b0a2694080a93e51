"""The product of an attention matrix with its values, and softmax.

Rule `value` (arXiv 2507.22832, A.5): the matrix is a constant of this picture, softened to softmax(logits / tau), and
the value alone carries the cotangent. Rule `full` needs nothing here: `sptrace.passes.soften_attention` leaves such a
product as it is, with the ordinary adjoints of matmul and softmax.
"""

from __future__ import annotations

import torch
from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.term import Term


@adjoint(gates.attend)
def attend(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    matrix: fx.Node,
    softened: fx.Node,
    value: fx.Node,
    left: bool,
    *,
    rule: str,
    tau: float | None,
) -> Cotangents:
    """y = matrix value gives value* = softened^T v; with the matrix on the right, value* = v softened^T."""
    turned = pull.call(aten.transpose.int, softened, -2, -1)
    part = pull.call(aten.matmul.default, turned, v) if left else pull.call(aten.matmul.default, v, turned)
    yield value, pull.unbroadcast(part, value)
    yield matrix, None
    yield softened, None


@adjoint(aten.softmax.int)
def softmax(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, dtype: torch.dtype | None = None
) -> Cotangents:
    """The ordinary x* = y (v - sum of v y along `dim`)."""
    pull.sizes(x, [dim])
    weights, cotangent = Term(pull, y), Term(pull, v)
    weighed = cotangent * weights
    yield x, (weighed - weights * weighed.sum([dim])).node
