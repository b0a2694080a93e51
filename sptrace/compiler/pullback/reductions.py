"""Reductions and running sums that are no plain mean or sum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from sptrace.artifact.softening import Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, shape, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.temperature import inverse_temperature
from sptrace.compiler.pullback.term import Term


@adjoint(aten.amax.default)
def amax(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int] = (), keepdim: bool = False
) -> Cotangents:
    """The largest number gets v; several that are equally large share it, as in PyTorch."""
    yield x, _shared(pull, v, y, x, dims)


@adjoint(gates.extreme_size)
def extreme_size(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool, largest: bool
) -> Cotangents:
    """Of the absolute values, times the sign of x."""
    share = _shared(pull, v, y, pull.call(aten.abs.default, x), dims)
    yield x, pull.call(aten.mul.Tensor, share, pull.call(aten.sign.default, x))


def _shared(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dims: Sequence[int]) -> fx.Node:
    """Equal shares of v for the numbers that are y."""
    rank = value(x).ndim
    reduced = {dim % rank for dim in dims} or set(range(rank))
    pull.sizes(x, sorted(reduced))
    kept = [1 if dim in reduced else size for dim, size in enumerate(shape(x))]
    found = pull.call(aten.eq.Tensor, x, pull.reshape(y, kept))
    ones = pull.call(aten.to.dtype, found, value(v).dtype)
    count = pull.call(aten.sum.dim_IntList, ones, sorted(reduced), True)
    share = pull.call(aten.div.Tensor, pull.reshape(v, kept), count)
    return pull.call(aten.mul.Tensor, ones, share)


@adjoint(gates.first_maximum)
def first_maximum(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, keepdim: bool) -> Cotangents:
    """The first of the largest numbers gets v, as in PyTorch: one number, however many are as large."""
    (size,) = pull.sizes(x, [dim])
    dim %= value(x).ndim
    kept = [1 if index == dim else length for index, length in enumerate(shape(x))]
    numbers = torch.arange(size).reshape([-1 if index == dim else 1 for index in range(len(kept))])
    place = pull.call(aten.argmax.default, x, dim, True)
    found = pull.call(aten.eq.Tensor, place, pull.constant("maximum.places", numbers))
    yield x, pull.through(pull.reshape(v, kept), found)


@adjoint(gates.amax)
def softened_amax(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    z: fx.Node,
    dims: Sequence[int],
    keepdim: bool,
    *,
    rule: str,
    tau: Temperature,
) -> Cotangents:
    """`softmax`: v spread over `dims` with weights softmax(z / tau), which carry no gradient. `hard` is aten.amax."""
    pull.sizes(z, dims)
    kept = [1 if dim in dims else size for dim, size in enumerate(shape(z))]
    above = Term(pull, z) - Term(pull, pull.reshape(y, kept))
    powers = (above * inverse_temperature(pull, z, tau)).exp()
    share = Term(pull, pull.reshape(v, kept)) / powers.sum(dims)
    yield z, (powers * share).node


@adjoint(aten.cumsum.default)
def cumsum(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int) -> Cotangents:
    """y_i = x_0 + ... + x_i gives x_i* = v_i + ... + v_n: the running sum from the other end."""
    pull.sizes(x, [dim])
    turned = pull.call(aten.cumsum.default, pull.call(aten.flip.default, v, [dim]), dim)
    yield x, pull.call(aten.flip.default, turned, [dim])
