"""The adjoint of a strided convolution is as many convolutions of stride 1 as the stride has phases."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value
from sptrace.compiler.graph.phases import weave
from sptrace.passes.flip_unit_stride_adjoints import turn

aten = torch.ops.aten

FEWEST = 16
"""Channels from which on a dense convolution is split: kernels compute as many at once, and few would be padded."""

MOST = 4
"""Phases, each a convolution of its own."""


@dataclass(frozen=True)
class Phase:
    """Which cells of the kernel meet in every s-th cell of the output.

    Arguments:
        first: the first of them; the others follow in steps of the stride.
        taps: how many.
        before, after: zeros around the input; cells less where negative.
    """

    first: int
    taps: int
    before: int
    after: int


def split_strided_adjoints(module: fx.GraphModule) -> int:
    """Replace transposed convolutions with a stride by convolutions without; returns how many.

    Before:  x = convolution(v, w, None, [2, 2], [1, 1], [1, 1], transposed=True, ...)[:, :, 0:112, 0:112]
    After:   x = weave of convolution(v, w[:, :, i::2, j::2] turned), for i and j of 0 and 1

    What is cut off is not computed. The weights are cut in the graph, so that the file has one copy of them.
    onnxruntime's CPU provider takes half the time for depthwise ones, and three quarters for dense ones; kernels of one
    cell, convolutions of few channels and patches of many cells it transposes as fast as anything.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target != aten.convolution.default or not _is_worth_it(*node.args):
            continue
        last, starts = _cropped(node)
        with builder.replacing(last):
            builder.replace(last, _split(builder, last, starts, *node.args))
        count += 1
    module.graph.eliminate_dead_code()
    return count


def _is_worth_it(
    v: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> bool:
    outputs, group_inputs, *kernel = static_shape(weight, range(value(weight).ndim))
    if not transposed or bias is not None or len(kernel) != 2 or set(stride) == {1} or set(dilation) != {1}:
        return False
    depthwise = groups == outputs and group_inputs == 1
    dense = groups == 1 and min(outputs, group_inputs) >= FEWEST
    few_phases = math.prod(stride) <= MOST and max(stride) <= max(kernel)
    return max(kernel) > 1 and (depthwise or dense) and few_phases


def _cropped(node: fx.Node) -> tuple[fx.Node, list[int]]:
    """The last of the slices that alone read a node, and where in each direction they start."""
    starts = [0, 0]
    while len(node.users) == 1:
        (user,) = node.users
        if user.target != aten.slice.Tensor:
            break
        _, dim, start, _, *step = user.args
        if dim not in (2, 3) or step not in ([], [1]):
            break
        assert isinstance(dim, int)
        assert isinstance(start, int)
        starts[dim - 2] += start
        node = user
    return node, starts


def _split(
    builder: GraphBuilder,
    result: fx.Node,
    starts: list[int],
    v: fx.Node,
    weight: fx.Node,
    bias: None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> fx.Node:
    sizes, kernel = static_shape(result, [2, 3]), static_shape(weight, [2, 3])
    geometry = zip(
        static_shape(v, [2, 3]),
        sizes,
        kernel,
        stride,
        [pad + start for pad, start in zip(padding, starts, strict=True)],
        strict=True,
    )
    rows, columns = (_phases(*numbers) for numbers in geometry)
    phases = {}
    for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
        if row.taps and column.taps:
            phases[i, j] = _phase(builder, v, weight, stride, row, column, groups)
    woven = weave(builder, phases, (stride[0], stride[1]))
    for dim, size in zip((2, 3), sizes, strict=True):
        if static_shape(woven, [dim]) != [size]:
            woven = builder.call(aten.slice.Tensor, woven, dim, 0, size)
    return woven


def _phases(given: int, size: int, kernel: int, stride: int, padding: int) -> list[Phase]:
    """Cell j = stride q + phase of the output is the sum of w[t] v[i] with stride i + t - padding = j."""
    cells = -(-size // stride)
    found = []
    for phase in range(stride):
        shift, first = divmod(phase + padding, stride)
        taps = len(range(first, kernel, stride))
        found.append(Phase(first, taps, taps - 1 - shift, cells + shift - given))
    return found


def _phase(
    builder: GraphBuilder,
    v: fx.Node,
    weight: fx.Node,
    stride: list[int],
    row: Phase,
    column: Phase,
    groups: int,
) -> fx.Node:
    cut = weight
    for dim, phase, step in zip((2, 3), (row, column), stride, strict=True):
        if static_shape(cut, [dim]) != [phase.taps]:
            (size,) = static_shape(cut, [dim])
            cut = builder.call(aten.slice.Tensor, cut, dim, phase.first, size, step)
    pads = [row.before, row.after, column.before, column.after]
    symmetric = row.before == row.after >= 0 and column.before == column.after >= 0
    if not symmetric:
        v = builder.call(aten.constant_pad_nd.default, v, pads[2:] + pads[:2])
    turned = turn(builder, cut, [row.taps, column.taps], groups)
    padding = [row.before, column.before] if symmetric else [0, 0]
    return builder.call(
        aten.convolution.default, v, turned, None, [1, 1], padding, [1, 1], False, [0, 0], groups
    )
