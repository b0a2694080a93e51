"""Maxima over windows of any kind: of volumes, and of several sizes. `pooling` knows the common ones by faster ways.

Along each dimension the windows are read by constant indices, [..., n k, ...], and their cells put back by a product
with a matrix of 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sptrace.artifact.softening import Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, shape
from sptrace.compiler.graph.sizes import Size
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.temperature import inverse_temperature
from sptrace.compiler.pullback.term import Term


@adjoint(gates.max_of_windows)
def max_of_windows(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    z: fx.Node,
    places: Sequence[list[list[int]]],
    *,
    rule: str,
    tau: Temperature,
) -> Cotangents:
    """`softmax`: v spread over each window with weights softmax(window / tau). `hard`: to its first maximum.

    Padding counts as 0 in the softmax, and what falls on it is dropped.
    """
    windows = _Windows(pull, z, places)
    if rule == "softmax":
        shares = windows.softmax(Term(pull, z) * inverse_temperature(pull, z, tau))
        spread = (shares * Term(pull, windows.beside_cells(v))).node
    else:
        spread = windows.to_first_maximum(v)
    yield z, windows.put_back(spread)


class _Windows:
    """The windows of z, and how they lie: [*before, n1, k1, n2, k2 ...], `before` the batch and the channels."""

    def __init__(self, pull: Pull, z: fx.Node, places: Sequence[list[list[int]]]) -> None:
        self.pull, self.z = pull, z
        self.tables = [torch.tensor(windows) for windows in places]
        rank = len(self.tables)
        self.before: list[Size] = shape(z)[:-rank]
        self.sizes = pull.sizes(z, range(len(shape(z)) - rank, len(shape(z))))
        self.filled = [torch.tensor(gates.filled(windows)) for windows in places]
        self.apart = [size for table in self.tables for size in table.shape]
        self.within = [len(self.before) + 1 + 2 * number for number in range(rank)]

    def _read(self, x: fx.Node) -> fx.Node:
        """The cells of all windows; in place of none, some other cell of the window."""
        for dim, table in enumerate(self.filled, start=len(self.before)):
            index = self.pull.constant("windows.cells", table.flatten())
            x = self.pull.call(aten.index_select.default, x, dim, index)
        return self.pull.reshape(x, [*self.before, *self.apart])

    def _where(self, least: int) -> Tensor:
        """Whether each cell is more than `least`, along every dimension; [n1, k1, n2, k2 ...]."""
        known = torch.ones([1] * len(self.apart), dtype=torch.bool)
        for number, table in enumerate(self.tables):
            sizes = [1] * len(self.apart)
            sizes[2 * number : 2 * number + 2] = table.shape
            known = known & (table > least).reshape(sizes)
        return known

    def _times(self, cells: Term, kept: Tensor) -> Term:
        if kept.all():
            return cells
        return cells * Term(self.pull, self.pull.constant("windows.kept", kept.float()))

    def softmax(self, sharpened: Term) -> Term:
        """The share of each cell."""
        inside = self._where(-1)
        cells = self._times(Term(self.pull, self._read(sharpened.node)), inside)
        peak = Term(self.pull, self.pull.call(aten.amax.default, cells.node, self.within, True))
        powers = self._times((cells - peak).exp(), self._where(-2))
        return self._times(powers / powers.sum(self.within), inside)

    def beside_cells(self, v: fx.Node) -> fx.Node:
        """One number a window, broadcasting over its cells."""
        return self.pull.reshape(
            v, [*self.before, *(size for table in self.tables for size in (len(table), 1))]
        )

    def to_first_maximum(self, v: fx.Node) -> fx.Node:
        """All of v in the first of the largest cells of its window."""
        pull, count = self.pull, len(self.before)
        order = [*range(count), *(dim - 1 for dim in self.within), *self.within]
        numbers = [len(table) for table in self.tables]
        lengths = [table.shape[1] for table in self.tables]
        inside = pull.constant("windows.inside", self._where(-1))
        cells = pull.call(aten.where.ScalarOther, inside, self._read(self.z), -math.inf)
        turned = pull.call(aten.permute.default, cells, order)
        rows = pull.reshape(turned, [*self.before, *numbers, math.prod(lengths)])
        first = pull.call(aten.argmax.default, rows, -1, True)
        is_first = pull.call(
            aten.eq.Tensor, pull.constant("windows.order", torch.arange(math.prod(lengths))), first
        )
        given = pull.through(pull.reshape(v, [*self.before, *numbers, 1]), is_first)
        apart = pull.reshape(given, [*self.before, *numbers, *lengths])
        return pull.call(aten.permute.default, apart, [order.index(dim) for dim in range(len(order))])

    def put_back(self, spread: fx.Node) -> fx.Node:
        """The sum, for each number of z, of its cells."""
        x = self.pull.reshape(spread, [*self.before, *(table.numel() for table in self.tables)])
        rank = len(self.before) + len(self.tables)
        for dim, (table, size) in enumerate(
            zip(self.filled, self.sizes, strict=True), start=len(self.before)
        ):
            matrix = torch.nn.functional.one_hot(table.flatten(), size).float()
            swapped = list(range(rank))
            swapped[dim], swapped[-1] = swapped[-1], swapped[dim]
            x = self.pull.call(aten.permute.default, x, swapped)
            x = self.pull.call(aten.matmul.default, x, self.pull.constant("windows.sum", matrix))
            x = self.pull.call(aten.permute.default, x, swapped)
        return x
