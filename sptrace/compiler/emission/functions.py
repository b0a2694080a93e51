"""Functions of one number, reductions, and reading at fixed places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import OnnxBuilder, emits
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, value
from sptrace.compiler.graph.facts import Target

UNARY: dict[Target, str] = {
    aten.tanh.default: "Tanh",
    aten.log.default: "Log",
    aten.sqrt.default: "Sqrt",
    aten.abs.default: "Abs",
    aten.sign.default: "Sign",
    aten.sgn.default: "Sign",
    aten.softplus.default: "Softplus",
    aten.floor.default: "Floor",
    aten.ceil.default: "Ceil",
    aten.round.default: "Round",
    aten.detach.default: "Identity",
}


def _register(target: Target, op_type: str) -> None:
    emits(target)(lambda onnx, node, x: onnx.op(op_type, x))


for _target, _op_type in UNARY.items():
    _register(_target, _op_type)


@emits(aten.rsqrt.default)
def rsqrt(onnx: OnnxBuilder, node: fx.Node, x: fx.Node) -> ir.Value:
    """Reciprocal of Sqrt."""
    return onnx.op("Reciprocal", onnx.op("Sqrt", x))


@emits(aten.pow.Tensor_Tensor, aten.pow.Scalar)
def power_of(onnx: OnnxBuilder, node: fx.Node, x: fx.Node | float, exponent: fx.Node) -> ir.Value:
    """Pow."""
    dtype = value(node).dtype
    return onnx.op("Pow", onnx.operand(x, dtype), onnx.operand(exponent, dtype))


@emits(aten.expm1.default)
def expm1(onnx: OnnxBuilder, node: fx.Node, x: fx.Node) -> ir.Value:
    """tanh(x / 2) (exp(x) + 1), which loses nothing near 0."""
    half, one = (onnx.operand(number, value(x).dtype) for number in (0.5, 1.0))
    bent = onnx.op("Tanh", onnx.op("Mul", x, half))
    return onnx.op("Mul", bent, onnx.op("Add", onnx.op("Exp", x), one))


@emits(aten.log1p.default)
def log1p(onnx: OnnxBuilder, node: fx.Node, x: fx.Node) -> ir.Value:
    """log(u) x / (u - 1) with u = 1 + x, where rounding u costs nothing; x itself where that makes it 1.

    Source: D. Goldberg, What every computer scientist should know about floating-point arithmetic, theorem 4.
    """
    one = onnx.operand(1.0, value(x).dtype)
    above = onnx.op("Add", x, one)
    apart = onnx.op("Sub", above, one)
    small = onnx.op("Equal", above, one)
    ratio = onnx.op("Div", x, onnx.op("Where", small, one, apart))
    return onnx.op("Where", small, x, onnx.op("Mul", onnx.op("Log", above), ratio))


@emits(aten.xlogy.Tensor)
def xlogy(onnx: OnnxBuilder, node: fx.Node, a: fx.Node, b: fx.Node) -> ir.Value:
    """Mul by the Log, 0 where a is 0."""
    zero = onnx.operand(0.0, value(node).dtype)
    return onnx.op("Where", onnx.op("Equal", a, zero), zero, onnx.op("Mul", a, onnx.op("Log", b)))


@emits(gates.root)
def root(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, order: float) -> ir.Value:
    """Sqrt, or Pow."""
    return onnx.op("Sqrt", x) if order == 2 else power(onnx, node, x, 1 / order)


@emits(aten.hardsigmoid.default)
def hardsigmoid(onnx: OnnxBuilder, node: fx.Node, x: fx.Node) -> ir.Value:
    """HardSigmoid."""
    return onnx.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


@emits(aten.pow.Tensor_Scalar)
def power(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, exponent: float) -> ir.Value:
    """Pow."""
    return onnx.op("Pow", x, onnx.operand(float(exponent), value(x).dtype))


@emits(aten.amax.default, gates.amax)
def amax(
    onnx: OnnxBuilder,
    node: fx.Node,
    x: fx.Node,
    dims: Sequence[int] = (),
    keepdim: bool = False,
    **gate: object,
) -> ir.Value:
    """ReduceMax."""
    axes = list(dims) or list(range(value(x).ndim))
    return onnx.op("ReduceMax", x, onnx.integers(axes), keepdims=int(keepdim))


@emits(gates.extreme_size)
def extreme_size(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool, largest: bool
) -> ir.Value:
    """ReduceMax or ReduceMin of Abs."""
    reduction = "ReduceMax" if largest else "ReduceMin"
    return onnx.op(reduction, onnx.op("Abs", x), onnx.integers(dims), keepdims=int(keepdim))


@emits(gates.first_maximum)
def first_maximum(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool) -> ir.Value:
    """ReduceMax."""
    return amax(onnx, node, x, [dim], keepdim)


@emits(aten.cumsum.default)
def cumsum(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int) -> ir.Value:
    """CumSum."""
    return onnx.op("CumSum", x, np.array(dim % value(x).ndim, dtype=np.int64))


@emits(aten.index_select.default)
def index_select(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, index: fx.Node) -> ir.Value:
    """Gather."""
    return onnx.op("Gather", x, index, axis=dim)
