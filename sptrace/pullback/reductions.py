"""Reductions and running sums that are no plain mean or sum."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sptrace.graph import shape, value
from sptrace.pullback.table import Cotangents, Pull, adjoint, aten


@adjoint(aten.amax.default)
def amax(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int] = (), keepdim: bool = False
) -> Cotangents:
    """The largest number gets v; several that are equally large share it, as in PyTorch."""
    rank = value(x).ndim
    reduced = {dim % rank for dim in dims} or set(range(rank))
    pull.sizes(x, sorted(reduced))
    kept = [1 if dim in reduced else size for dim, size in enumerate(shape(x))]
    found = pull.call(aten.eq.Tensor, x, pull.reshape(y, kept))
    ones = pull.call(aten.to.dtype, found, value(v).dtype)
    count = pull.call(aten.sum.dim_IntList, ones, sorted(reduced), True)
    share = pull.call(aten.div.Tensor, pull.reshape(v, kept), count)
    yield x, pull.call(aten.mul.Tensor, ones, share)


@adjoint(aten.cumsum.default)
def cumsum(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int) -> Cotangents:
    """y_i = x_0 + ... + x_i gives x_i* = v_i + ... + v_n: the running sum from the other end."""
    pull.sizes(x, [dim])
    turned = pull.call(aten.cumsum.default, pull.call(aten.flip.default, v, [dim]), dim)
    yield x, pull.call(aten.flip.default, turned, [dim])
