"""Pools along one dimension or three, adaptive maxima and pools of powers become pools of pictures and roots."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_extrema import drop_unread, values_replaced
from sptrace.passes.rewriting import Rewrite, replace_results, rewrite_by

aten = torch.ops.aten


def canonicalize_pool_ranks(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. max_pool1d, avg_pool1d, adaptive_avg_pool1d      ->  the same of pictures with a height of 1
    2. avg_pool3d, adaptive_avg_pool3d                  ->  over height and width, then over the depth
    3. adaptive_max_pool1d, adaptive_max_pool2d         ->  max_pool2d where all windows are of one size,
                                                            else max_of_windows
    4. max_pool2d_with_indices                          ->  max_pool2d, and where the first largest of each window is
       max_unpool2d(x, i)                               ->  scatter of x into zeros
    5. max_pool3d, adaptive_max_pool3d                  ->  max_pool2d of a picture whose rows are those of the
                                                            blocks, where these lie side by side, else max_of_windows
    6. pow(sign(o) relu(abs(o)) k, 1 / p), the end of   ->  root(o k, p)
       lp_pool2d, o the mean of x^p
    """
    return rewrite_by(REWRITES, module)


def _along_a_row(target: Target, fills: Sequence[int]) -> Callable[..., fx.Node]:
    """A pool along one dimension, as one of pictures; `fills` are the options of its height."""

    def rewrite(builder: GraphBuilder, node: fx.Node, x: fx.Node, *options: object) -> fx.Node:
        wide = [
            ([fill, *option] if option else []) if isinstance(option, list | tuple) else option
            for fill, option in zip([*fills, *[0] * len(options)], options, strict=False)
        ]
        return builder.reshape(builder.call(target, _with_height(builder, x), *wide), shape(node))

    return rewrite


def _with_height(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    sizes = shape(x)
    return builder.reshape(x, [*sizes[:-1], 1, sizes[-1]])


def _average_3d(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> fx.Node:
    """The share of a cell in a window is the product of its shares along each dimension, the padding's too."""
    if divisor is not None and ceil_mode:
        raise UnsupportedError(
            "avg_pool3d of ceil_mode with a divisor of its own: multiply by a number instead"
        )
    (depth, *window), (stride_there, *steps), (padding_there, *pads) = (
        _triple(option) for option in (kernel, stride or kernel, padding)
    )
    how = (ceil_mode, count_include_pad or divisor is not None)
    mean = builder.call(aten.avg_pool2d.default, _flat(builder, x), window, steps, pads, *how)
    along = ([depth, 1], [stride_there, 1], [padding_there, 0])
    result = builder.call(aten.avg_pool2d.default, _deep(builder, mean, x), *along, *how)
    if divisor is not None:
        result = builder.call(aten.mul.Tensor, result, depth * math.prod(window) / divisor)
    return builder.reshape(result, shape(node))


def _adaptive_average_3d(builder: GraphBuilder, node: fx.Node, x: fx.Node, size: Sequence[int]) -> fx.Node:
    depth, height, width = static_shape(node, [-3, -2, -1])
    mean = builder.call(aten.adaptive_avg_pool2d.default, _flat(builder, x), [height, width])
    deep = _deep(builder, mean, x)
    result = builder.call(aten.adaptive_avg_pool2d.default, deep, [depth, height * width])
    return builder.reshape(result, shape(node))


def _flat(builder: GraphBuilder, x: fx.Node) -> fx.Node:
    """[N, C, D, H, W] as [N, C D, H, W]."""
    _check_batch(x)
    channels, depth, *plane = static_shape(x, [1, 2, 3, 4])
    return builder.reshape(x, [shape(x)[0], channels * depth, *plane])


def _check_batch(x: fx.Node) -> None:
    if value(x).ndim != 5:
        raise UnsupportedError("it takes its input for a single volume: give it a batch dimension")


def _deep(builder: GraphBuilder, flat: fx.Node, x: fx.Node) -> fx.Node:
    """[N, C D, H, W] as [N, C, D, H W]."""
    channels, depth = static_shape(x, [1, 2])
    height, width = static_shape(flat, [2, 3])
    return builder.reshape(flat, [shape(x)[0], channels, depth, height * width])


def _adaptive_maximum(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, size: Sequence[int]
) -> fx.Node | None:
    row = value(x).ndim == 3 and len(size) == 1
    picture = _with_height(builder, x) if row else x
    sizes = static_shape(picture, [-2, -1])
    outputs = [1, *size] if row else list(facts(node).first[0].shape[-2:])
    if any(length % out for length, out in zip(sizes, outputs, strict=True)):
        largest = _of_windows(builder, picture, map(_adaptive_windows, sizes, outputs))
    else:
        window = [length // out for length, out in zip(sizes, outputs, strict=True)]
        largest = builder.call(aten.max_pool2d.default, picture, window, window)
    result = builder.reshape(largest, [*shape(x)[: -len(size)], *outputs[-len(size) :]])
    return values_replaced(builder, node, lambda: result)


def _maximum_3d(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> fx.Node | None:
    window, steps, pads, spread = map(_triple, (kernel, stride or kernel, padding, dilation))
    sizes = static_shape(x, [-3, -2, -1])
    first = facts(node).first
    outputs = (first if isinstance(first, torch.Tensor) else first[0]).shape[-3:]
    alone = window == steps and pads == [0] * 3 and (spread == [1] * 3 or window == [1] * 3)
    if alone and all(size % length == 0 for size, length in zip(sizes, window, strict=True)):
        result = _maxima_of_blocks(builder, x, window)
    else:
        result = _of_windows(builder, x, map(_windows, sizes, outputs, window, steps, pads, spread))
    if isinstance(facts(node).first, torch.Tensor):
        return result
    return values_replaced(builder, node, lambda: result)


def _adaptive_maximum_3d(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, size: Sequence[int]
) -> fx.Node | None:
    sizes, outputs = static_shape(x, [-3, -2, -1]), facts(node).first[0].shape[-3:]
    window = [length // out for length, out in zip(sizes, outputs, strict=True)]
    if any(length % out for length, out in zip(sizes, outputs, strict=True)):
        result = _of_windows(builder, x, map(_adaptive_windows, sizes, outputs))
    else:
        result = _maxima_of_blocks(builder, x, window)
    return values_replaced(builder, node, lambda: result)


def _maxima_of_blocks(builder: GraphBuilder, x: fx.Node, window: Sequence[int]) -> fx.Node:
    """A block [d, h, w] of a volume is a block [d h, w] of the picture whose rows are those of all blocks in turn."""
    _check_batch(x)
    batch, (channels, *sizes) = shape(x)[0], static_shape(x, [1, 2, 3, 4])
    depths, rows, columns = (size // length for size, length in zip(sizes, window, strict=True))
    deep, high, wide = window
    apart = builder.reshape(x, [batch, channels, depths, deep, rows, high, sizes[2]])
    turned = builder.call(aten.permute.default, apart, [0, 1, 2, 4, 3, 5, 6])
    picture = builder.reshape(turned, [batch, channels, depths * rows * deep * high, sizes[2]])
    largest = builder.call(aten.max_pool2d.default, picture, [deep * high, wide], [deep * high, wide])
    return builder.reshape(largest, [batch, channels, depths, rows, columns])


def _of_windows(builder: GraphBuilder, x: fx.Node, places: Iterable[list[list[int]]]) -> fx.Node:
    return builder.call(gates.max_of_windows, x, list(places), rule="hard", tau=None)


def _windows(
    size: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int
) -> list[list[int]]:
    """The cells of each window along a dimension; -1 beyond the volume."""
    starts = (stride * index - padding for index in range(outputs))
    rows = ([start + dilation * cell for cell in range(kernel)] for start in starts)
    return [[cell if 0 <= cell < size else -1 for cell in row] for row in rows]


def _adaptive_windows(size: int, outputs: int) -> list[list[int]]:
    """From floor(i size / outputs) to ceil((i + 1) size / outputs); -2 where a window is shorter than the longest."""
    ends = [(index * size // outputs, -(-(index + 1) * size // outputs)) for index in range(outputs)]
    longest = max(end - start for start, end in ends)
    return [[*range(start, end), *[-2] * (longest - end + start)] for start, end in ends]


def _maximum_and_index(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, kernel: Sequence[int], *options: Any
) -> fx.Node | None:
    drop_unread(builder, node)
    results = [builder.call(aten.max_pool2d.default, x, kernel, *options)]
    if any(user.args[1] == 1 for user in node.users):
        results.append(_places_of_maxima(builder, node, x, kernel, *options))
    replace_results(builder, node, results)
    return results[0]


def _places_of_maxima(
    builder: GraphBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> fx.Node:
    """The first largest of each window's cells, and where that lies in its plane, counted row by row."""
    high, wide = kernel if len(kernel) == 2 else list(kernel) * 2
    rows, columns = static_shape(x, [2, 3])
    down, across = facts(node).first[0].shape[-2:]
    tiles = list(stride or kernel) == list(kernel) and set(padding) == {0} and set(dilation) == {1}
    if not tiles or down * high > rows or across * wide > columns or value(x).ndim != 4:
        raise UnsupportedError(
            f"the places of the maxima of {node.target} ({facts(node).source}) are read, and "
            "its windows overlap or reach beyond the picture: let them lie side by side"
        )
    batch, channels = shape(x)[:2]
    for dim, length in ((2, down * high), (3, across * wide)):
        x = x if shape(x)[dim] == length else builder.call(aten.slice.Tensor, x, dim, 0, length)
    apart = builder.reshape(x, [batch, channels, down, high, across, wide])
    turned = builder.call(aten.permute.default, apart, [0, 1, 2, 4, 3, 5])
    cells = builder.reshape(turned, [batch, channels, down, across, high * wide])
    cell = builder.call(aten.argmax.default, cells, 4)
    inside = (torch.arange(high)[:, None] * columns + torch.arange(wide)).reshape(-1, 1)
    corner = torch.arange(down)[:, None] * high * columns + torch.arange(across) * wide
    found = builder.call(aten.embedding.default, builder.constant("maximum.inside", inside), cell)
    offset = builder.reshape(found, [batch, channels, down, across])
    return builder.call(aten.add.Tensor, offset, builder.constant("maximum.corner", corner))


def _unpool(
    builder: GraphBuilder, node: fx.Node, x: fx.Node, places: fx.Node, size: Sequence[int]
) -> fx.Node:
    batch, channels = shape(node)[:2]
    empty = builder.constant("unpool.empty", torch.zeros(1, channels, math.prod(size)))  # type: ignore[arg-type]
    whole = builder.expand(empty, [batch, channels, math.prod(size)])
    cells = math.prod(static_shape(x, [2, 3]))
    flat = [builder.reshape(each, [batch, channels, cells]) for each in (places, x)]
    return builder.reshape(builder.call(aten.scatter.src, whole, 2, *flat), shape(node))


def _root_of_powers(builder: GraphBuilder, node: fx.Node, x: fx.Node, exponent: float) -> fx.Node | None:
    """PyTorch's lp_pool2d has 0 for its derivative where all of a window is 0; so have our roots."""
    if x.target not in (aten.mul.Tensor, aten.mul.Scalar) or exponent <= 0:
        return None
    signed, count = x.args
    if (
        not isinstance(signed, fx.Node)
        or signed.target != aten.mul.Tensor
        or not isinstance(count, int | float)
    ):
        return None
    sign, size = signed.args
    if sign.target != aten.sign.default or size.target != aten.relu.default:  # type: ignore[union-attr]
        return None
    (mean,), (absolute,) = sign.args, size.args  # type: ignore[union-attr]
    if absolute.target != aten.abs.default or absolute.args != (mean,):  # type: ignore[union-attr]
        return None
    total = builder.call(aten.mul.Tensor, mean, count)
    if exponent == 1:
        nothing = builder.call(aten.eq.Scalar, total, 0)
        return builder.call(aten.where.ScalarSelf, nothing, 0.0, total)
    return builder.call(gates.root, total, 1 / exponent)


def _triple(option: Sequence[int] | int) -> list[int]:
    numbers = [option] if isinstance(option, int) else list(option)
    return numbers * 3 if len(numbers) == 1 else numbers


REWRITES: dict[Target, Rewrite] = {
    aten.max_pool1d.default: _along_a_row(aten.max_pool2d.default, [1, 1, 0, 1]),
    aten.avg_pool1d.default: _along_a_row(aten.avg_pool2d.default, [1, 1, 0]),
    aten.adaptive_avg_pool1d.default: _along_a_row(aten.adaptive_avg_pool2d.default, [1]),
    aten.avg_pool3d.default: _average_3d,
    aten.adaptive_avg_pool3d.default: _adaptive_average_3d,
    aten.adaptive_max_pool1d.default: _adaptive_maximum,
    aten.adaptive_max_pool2d.default: _adaptive_maximum,
    aten.adaptive_max_pool3d.default: _adaptive_maximum_3d,
    aten.max_pool2d_with_indices.default: _maximum_and_index,
    aten.max_unpool2d.default: _unpool,
    aten.max_pool3d.default: _maximum_3d,
    aten.max_pool3d_with_indices.default: _maximum_3d,
    aten.pow.Tensor_Scalar: _root_of_powers,
}
