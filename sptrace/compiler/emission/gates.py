"""Activations: their values. What the pullback makes of them stands in the graph as ordinary ops."""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import OnnxBuilder, emits
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import static_shape, value


@emits(gates.leaky_relu)
def leaky_relu(
    onnx: OnnxBuilder, node: fx.Node, z: fx.Node, slope: float | fx.Node, **gate: object
) -> ir.Value:
    """LeakyRelu; PRelu where the slope is a tensor."""
    if isinstance(slope, fx.Node):
        return onnx.op("PRelu", z, slope)
    return onnx.op("LeakyRelu", z, alpha=float(slope))


@emits(gates.glu)
def glu(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, **gate: object) -> ir.Value:
    """The product of one half with the Sigmoid of the other."""
    half = static_shape(x, [dim])[0] // 2
    first, second = (
        onnx.op("Slice", x, *(onnx.integers([number]) for number in (start, start + half, dim)))
        for start in (0, half)
    )
    return onnx.op("Mul", first, onnx.op("Sigmoid", second))


@emits(gates.elu)
def elu(
    onnx: OnnxBuilder,
    node: fx.Node,
    z: fx.Node,
    alpha: float,
    scale: float,
    input_scale: float,
    **gate: object,
) -> ir.Value:
    """Elu of the scaled input, times scale / input_scale: above 0 the input's scale cancels."""
    inner = _times(onnx, z, input_scale, z)
    outer = onnx.op("Elu", inner, alpha=float(alpha * input_scale))
    return onnx.op("Mul", outer, onnx.operand(scale / input_scale, value(z).dtype))


@emits(gates.silu)
def silu(onnx: OnnxBuilder, node: fx.Node, z: fx.Node, sharpness: float, **gate: object) -> ir.Value:
    """The z times its Sigmoid."""
    return onnx.op("Mul", z, onnx.op("Sigmoid", _times(onnx, z, sharpness, z)))


@emits(gates.gelu)
def gelu(onnx: OnnxBuilder, node: fx.Node, z: fx.Node, approximate: str, **gate: object) -> ir.Value:
    """Gelu."""
    return onnx.op("Gelu", z, approximate=approximate)


@emits(gates.hardswish)
def hardswish(onnx: OnnxBuilder, node: fx.Node, z: fx.Node, **gate: object) -> ir.Value:
    """The z times its HardSigmoid."""
    return onnx.op("Mul", z, onnx.op("HardSigmoid", z, alpha=1 / 6, beta=0.5))


@emits(gates.mish)
def mish(onnx: OnnxBuilder, node: fx.Node, z: fx.Node, **gate: object) -> ir.Value:
    """The z times Tanh of its Softplus."""
    return onnx.op("Mul", z, onnx.op("Tanh", onnx.op("Softplus", z)))


@emits(gates.softplus)
def softplus(
    onnx: OnnxBuilder, node: fx.Node, z: fx.Node, beta: float, threshold: float, **gate: object
) -> ir.Value:
    """Softplus of beta z, over beta; beyond a threshold where float32 sees the difference, z itself."""
    dtype = value(z).dtype
    inner = _times(onnx, z, beta, z)
    result = onnx.op("Mul", onnx.op("Softplus", inner), onnx.operand(1 / beta, dtype))
    if threshold >= gates.SOFTPLUS_IS_LINEAR:
        return result
    return onnx.op("Where", onnx.op("Greater", inner, onnx.operand(threshold, dtype)), z, result)


def _times(
    onnx: OnnxBuilder, operand: ir.Value | fx.Node, factor: float, like: fx.Node
) -> ir.Value | fx.Node:
    return operand if factor == 1 else onnx.op("Mul", operand, onnx.operand(factor, value(like).dtype))
