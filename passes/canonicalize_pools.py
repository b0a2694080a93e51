"""Every pooling op is brought into the one form that the rules and the emitter know."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape
from sptrace.compiler.graph.facts import Target

aten = torch.ops.aten


def canonicalize_pools(module: fx.GraphModule) -> int:
    """Rewrite pooling ops; returns how many.

    1. adaptive_avg_pool2d to 1x1                       -> mean over height and width
    2. adaptive_avg_pool2d to the input's own size      -> nothing
    3. adaptive_avg_pool2d to a divisor of the size     -> avg_pool2d
    4. adaptive_avg_pool2d otherwise                    -> two products with a constant matrix, one per dimension
    5. avg_pool2d whose padded cells count              -> avg_pool2d(x, kernel, stride, padding)
    6. avg_pool2d otherwise                             -> constant_pad_nd, avg_pool2d(x, kernel, stride), times
       (count_include_pad=False, divisor_override,         a constant map
       overhang of ceil_mode)
    7. max_pool2d                                       -> max_pool2d with all arguments written out
    8. any of these of [N, H, W]                        -> the same of [N, 1, H, W], reshaped back
    """
    builder = GraphBuilder(module)
    rewrites: dict[Target, Callable[..., fx.Node]] = {
        aten.adaptive_avg_pool2d.default: _adaptive_average,
        aten.avg_pool2d.default: _average,
        aten.max_pool2d.default: _maximum,
    }
    count = 0
    for node in list(module.graph.nodes):
        if node.target in rewrites:
            with builder.replacing(node):
                builder.replace(node, _rewritten(builder, node, rewrites[node.target]))
            count += 1
    return count


def _rewritten(builder: GraphBuilder, node: fx.Node, rewrite: Callable[..., fx.Node]) -> fx.Node:
    x, *options = node.args
    assert isinstance(x, fx.Node)
    sizes = shape(x)
    static_shape(x, [-2, -1])
    if len(sizes) == 4:
        return rewrite(builder, node, x, *options, **node.kwargs)
    pictures = builder.reshape(x, [sizes[0], 1, *sizes[1:]])
    return builder.reshape(rewrite(builder, node, pictures, *options, **node.kwargs), shape(node))


def _adaptive_average(builder: GraphBuilder, node: fx.Node, x: fx.Node, size: Sequence[int]) -> fx.Node:
    sizes, outputs = static_shape(x, [2, 3]), static_shape(node, [-2, -1])
    if outputs == [1, 1]:
        return builder.call(aten.mean.dim, x, [2, 3], True)
    if outputs == sizes:
        return x
    if all(length % out == 0 for length, out in zip(sizes, outputs, strict=True)):
        window = [length // out for length, out in zip(sizes, outputs, strict=True)]
        return builder.call(aten.avg_pool2d.default, x, window, window, [0, 0])
    rows, columns = (_averaging_matrix(*pair) for pair in zip(sizes, outputs, strict=True))
    over_rows = builder.call(aten.matmul.default, builder.constant("averaging.rows", rows), x)
    return builder.call(
        aten.matmul.default, over_rows, builder.constant("averaging.columns", columns.T.contiguous())
    )


def _averaging_matrix(size: int, outputs: int) -> Tensor:
    """[outputs, size]: row i averages the cells from floor(i size / outputs) to ceil((i + 1) size / outputs)."""
    matrix = torch.zeros(outputs, size, dtype=torch.float32)
    for row in range(outputs):
        start, end = row * size // outputs, -(-(row + 1) * size // outputs)
        matrix[row, start:end] = 1.0 / (end - start)
    return matrix


def _average(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> fx.Node:
    window, steps, pads = _pair(kernel), _pair(stride or kernel), _pair(padding)
    options = (list(window), list(steps), pads, ceil_mode, count_include_pad, divisor)
    sizes, outputs = static_shape(x, [2, 3]), static_shape(node, [-2, -1])
    # A single window reads no further than the picture, or a kernel of 1280 cells would be filled with zeros.
    for dim, (pad, size, out) in enumerate(zip(pads, sizes, outputs, strict=True)):
        if out == 1 and window[dim] > pad + size:
            window[dim] = steps[dim] = pad + size
    after = [
        max(0, (out - 1) * step + cells - pad - size)
        for size, out, cells, step, pad in zip(sizes, outputs, window, steps, pads, strict=True)
    ]
    overhangs = any(width > pad for width, pad in zip(after, pads, strict=True))
    cut = window != options[0]
    if divisor is None and not overhangs and not cut and (count_include_pad or not any(pads)):
        return builder.call(aten.avg_pool2d.default, x, window, steps, pads)
    padded = builder.call(aten.constant_pad_nd.default, x, [pads[1], after[1], pads[0], after[0]])
    mean = builder.call(aten.avg_pool2d.default, padded, window, steps, [0, 0])
    # Ask the op itself by how much each window's mean is to be scaled: pool a picture of ones in both ways.
    ones = torch.ones(1, 1, *sizes, dtype=torch.float64)
    filled = torch.nn.functional.pad(ones, [pads[1], after[1], pads[0], after[0]])
    wanted = aten.avg_pool2d.default(ones, *options)
    given = aten.avg_pool2d.default(filled, window, steps, [0, 0])
    assert math.prod(given.shape) == math.prod(wanted.shape)
    if torch.equal(wanted, given):
        return mean
    return builder.call(aten.mul.Tensor, mean, builder.constant("averaging.scale", (wanted / given).float()))


def _maximum(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> fx.Node:
    options = (_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation))
    return builder.call(aten.max_pool2d.default, x, *options, ceil_mode)


def _pair(option: Sequence[int] | int) -> list[int]:
    numbers = [option] if isinstance(option, int) else list(option)
    return numbers * 2 if len(numbers) == 1 else numbers
