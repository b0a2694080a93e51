"""Convolutions and pooling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import Input, OnnxBuilder, emits
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, static_shape, value


@emits(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def conv(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> ir.Value:
    """Conv."""
    rank = value(weight).ndim - 2
    options = [
        list(option) * rank if len(option) == 1 else list(option) for option in (stride, padding, dilation)
    ]
    return convolution(onnx, node, x, weight, bias, *options, False, [0] * rank, groups)


@emits(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> ir.Value:
    """ConvTranspose."""
    rank = value(weight).ndim - 2
    stride, padding, output_padding, dilation = (
        list(option) * rank if len(option) == 1 else list(option)
        for option in (stride, padding, output_padding, dilation)
    )
    return convolution(onnx, node, x, weight, bias, stride, padding, dilation, True, output_padding, groups)


@emits(aten.convolution.default)
def convolution(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: fx.Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> ir.Value:
    """Conv or ConvTranspose."""
    separate = onnx.apart(weight) if transposed else None
    kernel: Input = weight if separate is None else separate
    inputs = [x, kernel] if bias is None else [x, kernel, bias]
    attributes = {
        "kernel_shape": static_shape(weight, range(2, value(weight).ndim)),
        "strides": list(stride),
        "pads": [*padding, *padding],
        "dilations": list(dilation),
        "group": groups,
    }
    if transposed:
        return onnx.op("ConvTranspose", *inputs, **attributes, output_padding=list(output_padding))
    return onnx.op("Conv", *inputs, **attributes)


@emits(aten.upsample_nearest2d.default)
def upsample_nearest2d(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, size: Sequence[int]) -> ir.Value:
    """Resize by whole numbers."""
    times = [out / given for out, given in zip(size, static_shape(x, [2, 3]), strict=True)]
    scales = np.array([1, 1, *times], dtype=np.float32)
    return onnx.op(
        "Resize",
        x,
        None,
        scales,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


@emits(aten.avg_pool2d.default)
def avg_pool2d(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] = (0, 0),
) -> ir.Value:
    """AveragePool of complete windows in which padded cells count."""
    return onnx.op(
        "AveragePool",
        x,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=[*padding, *padding],
        count_include_pad=1,
    )


@emits(aten.max_pool2d.default, gates.max_pool2d)
def max_pool2d(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool = False,
    **gate: object,
) -> ir.Value:
    """MaxPool. How far ceil_mode reaches is written out as padding: runtimes have disagreed about its last window.

    A padding as wide as the kernel, which a dilation allows, is more than MaxPool takes: there Pad does it.
    """
    sizes, outputs = static_shape(x, [2, 3]), static_shape(node, [2, 3])
    after = [
        max(0, (out - 1) * step + spread * (cells - 1) + 1 - before - size)
        for size, out, cells, step, before, spread in zip(
            sizes, outputs, kernel, stride, padding, dilation, strict=True
        )
    ]
    padded: Input = x
    pads = [*padding, *after]
    if any(width >= cells for width, cells in zip(after, kernel, strict=True)):
        widths = onnx.integers([0, 0, *padding, 0, 0, *after])
        padded = onnx.op("Pad", x, widths, onnx.operand(float("-inf"), value(x).dtype))
        pads = [0, 0, 0, 0]
    return onnx.op(
        "MaxPool",
        padded,
        kernel_shape=list(kernel),
        strides=list(stride),
        pads=pads,
        dilations=list(dilation),
    )


@emits(gates.max_of_windows)
def max_of_windows(
    onnx: OnnxBuilder, node: fx.Node, z: fx.Node, places: Sequence[list[list[int]]], **gate: object
) -> ir.Value:
    """Gather of the windows along one dimension after the other, and ReduceMax of each."""
    rank = value(z).ndim
    sizes = static_shape(z, range(rank - len(places), rank))
    largest: fx.Node | ir.Value = z
    for number, windows in enumerate(places):
        axis, index = rank - len(places) + number, np.array(gates.filled(windows))
        cells = onnx.op("Gather", largest, index.flatten(), axis=axis)
        apart = onnx.op("Reshape", cells, onnx.integers([*[0] * axis, *index.shape, *sizes[number + 1 :]]))
        largest = onnx.op("ReduceMax", apart, onnx.integers([axis + 1]), keepdims=0)
    assert isinstance(largest, ir.Value)
    return largest
