"""Norms with statistics of their own, softmax, and products with an attention matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from sptrace.compiler.emission.builder import Input, OnnxBuilder, emits
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, shape, static_shape, value
from sptrace.compiler.graph.sizes import literal


@emits(gates.layer_norm)
def layer_norm(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    normalized_shape: Sequence[int],
    weight: fx.Node | None,
    bias: fx.Node | None,
    eps: float,
    **gate: object,
) -> ir.Value:
    """LayerNormalization, which wants a scale even where the network has none.

    Its third output is the inverse deviation, for those pullbacks that need it.
    """
    scale: Input = np.ones(list(normalized_shape), dtype=np.float32) if weight is None else weight
    inputs = [x, scale] if bias is None else [x, scale, bias]
    attributes = {"axis": -len(normalized_shape), "epsilon": eps}
    readers = [
        user
        for user in x.users
        if user.target is gates.inverse_deviation and user.args == (x, list(normalized_shape), eps)
    ]
    if not readers or _is_fused(x, node, *readers):
        return onnx.op("LayerNormalization", *inputs, **attributes)
    result, _, inverse = onnx.outputs_of("LayerNormalization", 3, *inputs, **attributes)
    for reader in readers:
        onnx.bind(reader, inverse)
    return result


def _is_fused(x: fx.Node, *readers: fx.Node) -> bool:
    """Whether onnxruntime makes one SkipLayerNormalization of a norm and the sum before it.

    Its kernels for GPUs leave the deviation out, whoever reads it.
    """
    return x.target is aten.add.Tensor and set(x.users) == set(readers)


@emits(gates.inverse_deviation)
def inverse_deviation(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, normalized_shape: Sequence[int], eps: float
) -> ir.Value:
    """An output of the norm that has these statistics, or where there is none, their definition."""
    if onnx.is_bound(node):
        return onnx.value(node)
    axes = onnx.integers(range(-len(normalized_shape), 0))
    apart = onnx.op("Sub", x, onnx.op("ReduceMean", x, axes, keepdims=1))
    variance = onnx.op("ReduceMean", onnx.op("Mul", apart, apart), axes, keepdims=1)
    root = onnx.op("Sqrt", onnx.op("Add", variance, onnx.operand(eps, value(x).dtype)))
    return onnx.op("Reciprocal", root)


@emits(gates.group_norm)
def group_norm(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    groups: int,
    weight: fx.Node | None,
    bias: fx.Node | None,
    eps: float,
    **gate: object,
) -> ir.Value:
    """InstanceNormalization of [N, groups, the rest], then weight and bias.

    GroupNormalization would say the same, but runtimes have no kernel for it and expand it into single steps.
    """
    sizes = shape(x)
    grouped = onnx.op("Reshape", x, onnx.integers(literal([sizes[0], groups, value(x)[0].numel() // groups])))
    ones, zeros = np.ones(groups, dtype=np.float32), np.zeros(groups, dtype=np.float32)
    standard = onnx.op("InstanceNormalization", grouped, ones, zeros, epsilon=eps)
    result = onnx.op("Reshape", standard, onnx.integers(literal(sizes)))
    channels = onnx.integers([-1] + [1] * (len(sizes) - 2))
    if weight is not None:
        result = onnx.op("Mul", result, onnx.op("Reshape", weight, channels))
    if bias is not None:
        result = onnx.op("Add", result, onnx.op("Reshape", bias, channels))
    return result


@emits(gates.rms_norm)
def rms_norm(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    normalized_shape: Sequence[int],
    weight: fx.Node | None,
    eps: float,
    **gate: object,
) -> ir.Value:
    """Division by the root of the mean square; RMSNormalization comes with opset 23."""
    axes = onnx.integers(range(-len(normalized_shape), 0))
    square = onnx.op("ReduceMean", onnx.op("Mul", x, x), axes, keepdims=1)
    root = onnx.op("Sqrt", onnx.op("Add", square, onnx.operand(eps, value(x).dtype)))
    standard = onnx.op("Div", x, root)
    return standard if weight is None else onnx.op("Mul", standard, weight)


@emits(aten.softmax.int)
def softmax(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, dtype: torch.dtype | None = None
) -> ir.Value:
    """Softmax along the last axis, the only one that runtimes do fast; elsewhere Exp, ReduceSum and Div."""
    dim %= value(x).ndim
    if dim == value(x).ndim - 1:
        return onnx.op("Softmax", x, axis=-1)
    static_shape(x, [dim])
    axis = onnx.integers([dim])
    peak = onnx.op("ReduceMax", x, axis, keepdims=1)
    powers = onnx.op("Exp", onnx.op("Sub", x, peak))
    return onnx.op("Div", powers, onnx.op("ReduceSum", powers, axis, keepdims=1))


@emits(gates.attend)
def attend(
    onnx: OnnxBuilder,
    node: fx.Node,
    matrix: fx.Node,
    softened: fx.Node,
    value: fx.Node,
    left: bool,
    **gate: object,
) -> ir.Value:
    """MatMul."""
    return onnx.op("MatMul", matrix, value) if left else onnx.op("MatMul", value, matrix)
