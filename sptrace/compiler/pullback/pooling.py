"""Pooling. Nothing here gathers or scatters: runtimes have slow kernels for that, or none on GPUs.

A window op reads, for each of the kernel's positions, one strided slice of its padded input. Its adjoint puts such
slices back. Cells whose index is equal modulo the stride form a *phase*; within a phase the slices are plain shifts,
so they are padded and added, and the phases are interleaved at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product

from torch import fx

from sptrace.artifact.softening import Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, static_shape
from sptrace.compiler.graph.phases import weave
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.temperature import inverse_temperature
from sptrace.compiler.pullback.term import Term

NEGATIVE_INFINITY = float("-inf")


@dataclass(frozen=True)
class Axis:
    """The windows along one spatial dimension.

    Arguments:
        size: cells of the input. outputs: number of windows. kernel, stride, padding, dilation: as usual.
    """

    size: int
    outputs: int
    kernel: int
    stride: int
    padding: int
    dilation: int

    @property
    def padding_after(self) -> int:
        """Cells that must follow the input so that the last window is complete; with ceil_mode more than `padding`."""
        return max(0, self.last + 1 - self.padding - self.size)

    @property
    def last(self) -> int:
        """The last padded cell that a window reads."""
        return (self.outputs - 1) * self.stride + self.dilation * (self.kernel - 1)

    @property
    def offsets(self) -> range:
        """Where the first window's cells lie in the padded input."""
        return range(0, self.dilation * self.kernel, self.dilation)

    @property
    def tiles(self) -> bool:
        """Do the windows lie side by side, without padding or overhang?"""
        return (
            self.stride == self.kernel
            and self.padding == self.padding_after == 0
            and (self.dilation == 1 or self.kernel == 1)
        )

    @property
    def phase_length(self) -> int:
        """Cells of every phase: enough for all slices, and for the input's own last cell."""
        return max(-(-(self.padding + self.size) // self.stride), self.last // self.stride + 1)


@adjoint(gates.max_pool2d)
def max_pool2d(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    z: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    *,
    rule: str,
    tau: Temperature,
) -> Cotangents:
    """`softmax`: v spread over each window with weights softmax(window / tau). `hard`: to its first maximum.

    The weights carry no gradient. In the softmax padded cells count as 0, and so do the cells by which a last window
    of ceil_mode overhangs; what falls on them is dropped. The maximum itself ignores them.
    """
    geometry = zip(
        pull.sizes(z, [2, 3]), pull.sizes(y, [2, 3]), kernel, stride, padding, dilation, strict=True
    )
    axes = tuple(Axis(*numbers) for numbers in geometry)
    if rule == "softmax":
        sharpness = inverse_temperature(pull, z, tau)
        if all(axis.tiles for axis in axes):
            yield z, _tiled_softmax(pull, v, y, z, axes, sharpness)
            return
        padded = _pad(pull, z, axes, 0.0)
        # The peak keeps exp in range; where there is padding it must count the zeros too.
        peak = (
            y if padded is z else pull.call(aten.max_pool2d.default, padded, kernel, stride, [0, 0], dilation)
        )
        sharpened = [(Term(pull, node) * sharpness).node for node in (padded, peak)]
        parts = _softmax_parts(pull, v, _slices(pull, sharpened[0], axes), sharpened[1])
    else:
        padded = _pad(pull, z, axes, NEGATIVE_INFINITY)
        parts = _first_maximum_parts(pull, v, _slices(pull, padded, axes), y)
    yield z, _put_back(pull, parts, axes)


def _tiled_softmax(
    pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, axes: Sequence[Axis], sharpness: Term | float
) -> fx.Node:
    """Windows that do not overlap: each cell knows its own by upsampling, and nothing is cut into slices."""
    rows, columns = axes
    kernel = [rows.kernel, columns.kernel]
    cells = Term(pull, _cut(pull, _cut(pull, z, 2, 0, rows.last + 1), 3, 0, columns.last + 1))
    powers = ((cells - Term(pull, _upsample(pull, y, axes))) * sharpness).exp()
    total = Term(pull, pull.call(aten.avg_pool2d.default, powers.node, kernel, kernel)) * math.prod(kernel)
    share = Term(pull, v) / total
    return _crop(pull, (powers * Term(pull, _upsample(pull, share.node, axes))).node, axes)


def _softmax_parts(pull: Pull, v: fx.Node, slices: Iterable[fx.Node], peak: fx.Node) -> list[fx.Node]:
    powers = [(Term(pull, cells) - Term(pull, peak)).exp() for cells in slices]
    share = Term(pull, v) / reduce(Term.__add__, powers)
    return [(power * share).node for power in powers]


def _first_maximum_parts(pull: Pull, v: fx.Node, slices: Iterable[fx.Node], y: fx.Node) -> list[fx.Node]:
    parts, unspent = [], v
    for cells in slices:
        found = pull.call(aten.eq.Tensor, cells, y)
        parts.append(pull.call(aten.where.ScalarOther, found, unspent, 0.0))
        unspent = pull.call(aten.where.ScalarSelf, found, 0.0, unspent)
    return parts


@adjoint(aten.upsample_nearest2d.default)
def upsample_nearest2d(pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, size: Sequence[int]) -> Cotangents:
    """Every number gets the sum of its copies; by whole numbers only, `canonicalize_resizing` sees to that."""
    times = [out // given for out, given in zip(size, pull.sizes(x, [2, 3]), strict=True)]
    mean = pull.call(aten.avg_pool2d.default, v, times, times)
    yield x, pull.call(aten.mul.Tensor, mean, float(math.prod(times)))


@adjoint(aten.avg_pool2d.default)
def avg_pool2d(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
) -> Cotangents:
    """Every cell of a window gets v / (cells of the window).

    The pass `canonicalize_pools` has brought all average pools into this form: padded cells count, windows are
    complete.
    """
    geometry = zip(pull.sizes(x, [2, 3]), pull.sizes(y, [2, 3]), kernel, stride, padding, (1, 1), strict=True)
    axes = tuple(Axis(*numbers) for numbers in geometry)
    if all(axis.stride == 1 for axis in axes):
        # The windows over a cell start at the cell itself and before it: again an average pool.
        reach = [axis.kernel - 1 for axis in axes]
        around = pull.call(aten.constant_pad_nd.default, v, [reach[1], reach[1], reach[0], reach[0]])
        padded = pull.call(aten.avg_pool2d.default, around, list(kernel), [1, 1])
        yield x, _crop(pull, padded, axes)
    elif all(axis.tiles for axis in axes):
        part = pull.call(aten.mul.Tensor, v, 1.0 / math.prod(kernel))
        yield x, _crop(pull, _upsample(pull, part, axes), axes)
    else:
        part = pull.call(aten.mul.Tensor, v, 1.0 / (axes[0].kernel * axes[1].kernel))
        yield x, _put_back(pull, [part] * (axes[0].kernel * axes[1].kernel), axes)


def _pad(pull: Pull, x: fx.Node, axes: Sequence[Axis], fill: float) -> fx.Node:
    rows, columns = axes
    widths = [columns.padding, columns.padding_after, rows.padding, rows.padding_after]
    return pull.call(aten.constant_pad_nd.default, x, widths, fill) if any(widths) else x


def _slices(pull: Pull, padded: fx.Node, axes: Sequence[Axis]) -> Iterator[fx.Node]:
    """For each position in the window, row by row: its cell of every window, in the shape of the output."""
    rows, columns = axes
    for row, column in product(rows.offsets, columns.offsets):
        # Steps along a row are slow, so they are walked once for each phase; all else copies runs of numbers.
        first, phase = divmod(column, columns.stride)
        comb = _cut(pull, padded, 3, phase, columns.last + 1, columns.stride)
        strip = _cut(pull, comb, 2, row, row + (rows.outputs - 1) * rows.stride + 1, rows.stride)
        yield _cut(pull, strip, 3, first, first + columns.outputs)


def _cut(pull: Pull, x: fx.Node, dim: int, start: int, end: int, step: int = 1) -> fx.Node:
    (size,) = static_shape(x, [dim])
    if (start, step) == (0, 1) and end >= size:
        return x
    return pull.call(aten.slice.Tensor, x, dim, start, end, step)


def _upsample(pull: Pull, x: fx.Node, axes: Sequence[Axis]) -> fx.Node:
    """Every number in as many cells as its window has."""
    return pull.call(aten.upsample_nearest2d.default, x, [axis.outputs * axis.stride for axis in axes])


def _put_back(pull: Pull, parts: Sequence[fx.Node], axes: Sequence[Axis]) -> fx.Node:
    """The adjoint of `_pad` followed by `_slices`: what belongs to a cell is added, what fell on padding is dropped."""
    rows, columns = axes
    phases: dict[tuple[int, int], fx.Node] = {}
    for (row, column), part in zip(product(rows.offsets, columns.offsets), parts, strict=True):
        phase = (row % rows.stride, column % columns.stride)
        shifted = _shift(pull, part, (row // rows.stride, column // columns.stride), axes)
        phases[phase] = pull.call(aten.add.Tensor, phases[phase], shifted) if phase in phases else shifted
    # Where the stride exceeds the kernel, there are cells that no window reads.
    return _crop(pull, weave(pull, phases, (rows.stride, columns.stride)), axes)


def _shift(pull: Pull, part: fx.Node, by: tuple[int, int], axes: Sequence[Axis]) -> fx.Node:
    widths = []
    for distance, axis in zip(reversed(by), reversed(axes), strict=True):
        widths += [distance, axis.phase_length - distance - axis.outputs]
    return pull.call(aten.constant_pad_nd.default, part, widths) if any(widths) else part


def _crop(pull: Pull, padded: fx.Node, axes: Sequence[Axis]) -> fx.Node:
    """Back to the extent of the input: without the padding before, and without or with zeros after."""
    for dim, axis in zip((2, 3), axes, strict=True):
        (length,) = static_shape(padded, [dim])
        missing = axis.padding + axis.size - length
        if missing > 0:
            widths = [0, missing] if dim == 3 else [0, 0, 0, missing]
            padded = pull.call(aten.constant_pad_nd.default, padded, widths)
        padded = _cut(pull, padded, dim, axis.padding, axis.padding + axis.size)
    return padded
