"""Convolutions get their padding in numbers that all runtimes take: the form that the rules and the emitter know."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value
from sptrace.compiler.graph.facts import Target

aten = ops.aten


def canonicalize_convolutions(module: fx.GraphModule) -> int:
    """Rewrite the padding of convolutions; returns how many.

    1. conv(x, w, b, stride, "valid", ...)                     ->  conv(x, w, b, stride, 0, ...)
    2. conv(x, w, b, 1, "same", ...), d (k - 1) even           ->  conv(x, w, b, 1, d (k - 1) / 2, ...)
    3. conv(x, w, b, 1, "same", ...), d (k - 1) odd somewhere  ->  constant_pad_nd by one cell behind, then as 2.
    4. conv_transpose(x, w, b, stride, p, output_padding, ...) ->  conv_transpose(x, w, None, stride, 0, 0, ...), then
       with output_padding >= stride, which a dilation allows      constant_pad_nd by -p and output_padding - p, add b
    5. convolution(x, w, b, ..., transposed, ...)              ->  conv1d, conv2d, conv3d, conv_transpose1d ...
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in REWRITES:
            continue
        rewrite, target = REWRITES[node.target]
        with builder.replacing(node):
            new = rewrite(builder, target, *node.args, **node.kwargs)
            if new is not None:
                builder.replace(node, new)
                count += 1
    return count


def _without_words(
    builder: GraphBuilder,
    target: Target,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: str = "valid",
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> fx.Node:
    kernel = static_shape(weight, range(2, value(weight).ndim))
    total = [
        0 if padding == "valid" else spread * (cells - 1)
        for spread, cells in zip(_per_dimension(dilation, len(kernel)), kernel, strict=True)
    ]
    if any(width % 2 for width in total):
        # constant_pad_nd lists (before, after) from the last dimension on.
        odd = [cells for width in reversed(total) for cells in (0, width % 2)]
        x = builder.call(aten.constant_pad_nd.default, x, odd)
    before = [width // 2 for width in total]
    return builder.call(target, x, weight, bias, list(stride), before, list(dilation), groups)


def _by_rank(
    builder: GraphBuilder,
    target: Target,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *flags: bool,
) -> fx.Node:
    rank = value(weight).ndim - 2
    if not transposed:
        return builder.call(FORWARD[rank], x, weight, bias, stride, padding, dilation, groups)
    options = (stride, padding, output_padding, groups, dilation)
    cropped = _with_less_output_padding(builder, TRANSPOSED[rank], x, weight, bias, *options)
    return builder.call(TRANSPOSED[rank], x, weight, bias, *options) if cropped is None else cropped


def _with_less_output_padding(
    builder: GraphBuilder,
    target: Target,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> fx.Node | None:
    rank = value(weight).ndim - 2
    stride, padding, output_padding = (
        _per_dimension(option, rank) for option in (stride, padding, output_padding)
    )
    if all(extra < step for extra, step in zip(output_padding, stride, strict=True)):
        return None
    whole = builder.call(
        target, x, weight, None, stride, [0] * rank, [0] * rank, groups, _per_dimension(dilation, rank)
    )
    widths = [
        cells
        for width, extra in zip(reversed(padding), reversed(output_padding), strict=True)
        for cells in (-width, extra - width)
    ]
    cropped = builder.call(aten.constant_pad_nd.default, whole, widths)
    if bias is None:
        return cropped
    return builder.call(aten.add.Tensor, cropped, builder.reshape(bias, [1, -1, *[1] * rank]))


def _per_dimension(option: Sequence[int], rank: int) -> list[int]:
    return list(option) * rank if len(option) == 1 else list(option)


FORWARD: dict[int, Target] = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}
TRANSPOSED: dict[int, Target] = {
    1: aten.conv_transpose1d.default,
    2: aten.conv_transpose2d.input,
    3: aten.conv_transpose3d.input,
}

REWRITES: dict[Target, tuple[Callable[..., fx.Node | None], Target]] = {
    aten.convolution.default: (_by_rank, aten.convolution.default),
    aten._convolution.default: (_by_rank, aten.convolution.default),
    aten.conv1d.padding: (_without_words, aten.conv1d.default),
    aten.conv2d.padding: (_without_words, aten.conv2d.default),
    aten.conv3d.padding: (_without_words, aten.conv3d.default),
    aten.conv_transpose1d.default: (_with_less_output_padding, aten.conv_transpose1d.default),
    aten.conv_transpose2d.input: (_with_less_output_padding, aten.conv_transpose2d.input),
    aten.conv_transpose3d.input: (_with_less_output_padding, aten.conv_transpose3d.input),
}
