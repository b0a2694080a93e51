"""Functions of one number, reductions, and reading at fixed places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from torch import fx

from sptrace import gates
from sptrace.emission.builder import OnnxBuilder, emits
from sptrace.graph import Target, value
from sptrace.pullback.table import aten

UNARY: dict[Target, str] = {
    aten.tanh.default: "Tanh",
    aten.log.default: "Log",
    aten.sqrt.default: "Sqrt",
    aten.sin.default: "Sin",
    aten.cos.default: "Cos",
    aten.abs.default: "Abs",
    aten.sign.default: "Sign",
    aten.softplus.default: "Softplus",
    aten.floor.default: "Floor",
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


@emits(aten.amax.default)
def amax(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int] = (), keepdim: bool = False
) -> ir.Value:
    """ReduceMax."""
    axes = list(dims) or list(range(value(x).ndim))
    return onnx.op("ReduceMax", x, onnx.integers(axes), keepdims=int(keepdim))


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
