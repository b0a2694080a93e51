"""Reading at fixed places. The adjoint adds up what was read, without scattering."""

from __future__ import annotations

from torch import fx

from sptrace.compiler.graph.builder import aten, parameter, value
from sptrace.compiler.graph.placing import put
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint


@adjoint(aten.index_select.default)
def index_select(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> Cotangents:
    """y_i = x_index(i)."""
    (size,) = pull.sizes(x, [dim])
    yield x, put(pull, v, dim % value(x).ndim, parameter(pull.module, index), size)
