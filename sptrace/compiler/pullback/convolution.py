"""Convolutions: the adjoint of a convolution is a transposed convolution with the same weights, and vice versa."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sptrace.compiler.graph.builder import aten, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.errors import UnsupportedError


@adjoint(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def convolution(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Cotangents:
    """y = W * x + b gives x* = W^T * v, cropped or padded to the extent of x."""
    spatial = _spatial(x, weight)
    stride, padding, dilation = (
        _per_dimension(option, len(spatial)) for option in (stride, padding, dilation)
    )
    output_padding = [
        size - ((out - 1) * step - 2 * pad + spread * (kernel - 1) + 1)
        for size, out, kernel, step, pad, spread in zip(
            pull.sizes(x, spatial),
            pull.sizes(y, spatial),
            pull.sizes(weight, spatial),
            stride,
            padding,
            dilation,
            strict=True,
        )
    ]
    yield (
        x,
        pull.call(
            aten.convolution.default, v, weight, None, stride, padding, dilation, True, output_padding, groups
        ),
    )


@adjoint(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def transposed_convolution(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Cotangents:
    """y = W^T * x + b gives x* = W * v; the rows that output_padding added read nothing of x.

    Less of them than a stride, or the convolution would find room for another step: `canonicalize_convolutions`.
    """
    rank = len(_spatial(x, weight))
    stride, padding, dilation = (_per_dimension(option, rank) for option in (stride, padding, dilation))
    yield (
        x,
        pull.call(
            aten.convolution.default, v, weight, None, stride, padding, dilation, False, [0] * rank, groups
        ),
    )


def _spatial(x: fx.Node, weight: fx.Node) -> range:
    if value(x).ndim != value(weight).ndim:
        raise UnsupportedError("it takes its input for a single picture: give it a batch dimension")
    return range(2, value(weight).ndim)


def _per_dimension(option: Sequence[int], rank: int) -> list[int]:
    return list(option) * rank if len(option) == 1 else list(option)
