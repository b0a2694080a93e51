"""Reading at fixed places. The adjoint adds up what was read, without scattering."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from sptrace.graph import parameter, value
from sptrace.pullback.table import Cotangents, Pull, adjoint, aten


@adjoint(aten.index_select.default)
def index_select(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Cotangents:
    """y_i = x_index(i). A permutation is undone by its inverse; otherwise v is multiplied by a 0/1 matrix."""
    (size,) = pull.sizes(x, [dim])
    places = parameter(pull.module, index)
    dim %= value(x).ndim
    if len(places) == size and sorted(places.tolist()) == list(range(size)):
        inverse = pull.constant("reading.inverse", places.argsort())
        yield x, pull.call(aten.index_select.default, v, dim, inverse)
        return
    matrix = pull.constant("reading.places", _one_hot(places, size))
    last = value(x).ndim - 1
    turned = v if dim == last else pull.call(aten.transpose.int, v, dim, last)
    part = pull.call(aten.matmul.default, turned, matrix)
    yield x, part if dim == last else pull.call(aten.transpose.int, part, dim, last)


def _one_hot(places: Tensor, size: int) -> Tensor:
    return torch.nn.functional.one_hot(places, size).float()
