"""Element-wise ops, comparisons, reductions and matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from sptrace.compiler.emission.builder import DTYPES, Input, OnnxBuilder, emits
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten, value
from sptrace.compiler.graph.facts import Target

UNARY = {
    aten.exp.default: "Exp",
    aten.erf.default: "Erf",
    aten.sigmoid.default: "Sigmoid",
    aten.neg.default: "Neg",
    aten.reciprocal.default: "Reciprocal",
    aten.relu.default: "Relu",
    aten.logical_not.default: "Not",
}

BINARY = {
    aten.mul.Tensor: "Mul",
    aten.mul.Scalar: "Mul",
    aten.div.Tensor: "Div",
    aten.div.Scalar: "Div",
    aten.eq.Tensor: "Equal",
    aten.eq.Scalar: "Equal",
    aten.gt.Tensor: "Greater",
    aten.gt.Scalar: "Greater",
    aten.ge.Tensor: "GreaterOrEqual",
    aten.ge.Scalar: "GreaterOrEqual",
    aten.lt.Tensor: "Less",
    aten.lt.Scalar: "Less",
    aten.le.Tensor: "LessOrEqual",
    aten.le.Scalar: "LessOrEqual",
    aten.clamp_min.default: "Max",
    aten.clamp_max.default: "Min",
    aten.maximum.default: "Max",
    aten.minimum.default: "Min",
    aten.remainder.Scalar: "Mod",
    aten.logical_and.default: "And",
    aten.logical_or.default: "Or",
    aten.matmul.default: "MatMul",
    aten.mm.default: "MatMul",
    aten.bmm.default: "MatMul",
    aten.mv.default: "MatMul",
}


def _register_unary(target: Target, op_type: str) -> None:
    emits(target)(lambda onnx, node, x: onnx.op(op_type, x))


def _register_binary(target: Target, op_type: str) -> None:
    emits(target)(lambda onnx, node, a, b: onnx.op(op_type, *_operands(onnx, node, a, b)))


for _target, _op_type in UNARY.items():
    _register_unary(_target, _op_type)
for _target, _op_type in BINARY.items():
    _register_binary(_target, _op_type)


def _operands(
    onnx: OnnxBuilder, node: fx.Node, a: fx.Node | float, b: fx.Node | float
) -> tuple[Input, Input]:
    dtype = value(node).dtype
    if dtype == torch.bool:  # a comparison
        dtype = torch.result_type(_without_data(a), _without_data(b))
    return onnx.operand(a, dtype), onnx.operand(b, dtype)


def _without_data(operand: fx.Node | float) -> Any:
    return value(operand) if isinstance(operand, fx.Node) else operand


@emits(aten.ne.Tensor, aten.ne.Scalar)
def ne(onnx: OnnxBuilder, node: fx.Node, a: fx.Node | float, b: fx.Node | float) -> ir.Value:
    """Not of Equal."""
    return onnx.op("Not", onnx.op("Equal", *_operands(onnx, node, a, b)))


@emits(gates.relu)
def relu(onnx: OnnxBuilder, node: fx.Node, z: fx.Node, **gate: object) -> ir.Value:
    """Relu."""
    return onnx.op("Relu", z)


@emits(gates.hardtanh, aten.hardtanh.default)
def hardtanh(
    onnx: OnnxBuilder, node: fx.Node, z: fx.Node, low: float = -1.0, high: float = 1.0, **gate: object
) -> ir.Value:
    """Clip."""
    dtype = value(z).dtype
    return onnx.op("Clip", z, onnx.operand(low, dtype), onnx.operand(high, dtype))


@emits(aten.add.Tensor, aten.add.Scalar)
def add(
    onnx: OnnxBuilder, node: fx.Node, a: fx.Node | float, b: fx.Node | float, alpha: float = 1
) -> ir.Value:
    """Add."""
    left, right = _operands(onnx, node, a, b)
    return onnx.op("Add", left, _times(onnx, right, alpha, node))


@emits(aten.sub.Tensor, aten.sub.Scalar)
def sub(
    onnx: OnnxBuilder, node: fx.Node, a: fx.Node | float, b: fx.Node | float, alpha: float = 1
) -> ir.Value:
    """Sub."""
    left, right = _operands(onnx, node, a, b)
    return onnx.op("Sub", left, _times(onnx, right, alpha, node))


@emits(aten.rsub.Tensor, aten.rsub.Scalar)
def rsub(
    onnx: OnnxBuilder, node: fx.Node, a: fx.Node | float, b: fx.Node | float, alpha: float = 1
) -> ir.Value:
    """Sub with the operands exchanged."""
    return sub(onnx, node, b, a, alpha)


def _times(onnx: OnnxBuilder, operand: Input, factor: float, like: fx.Node) -> Input:
    return operand if factor == 1 else onnx.op("Mul", operand, onnx.operand(factor, value(like).dtype))


@emits(aten.clamp.default)
def clamp(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, low: float | None = None, high: float | None = None
) -> ir.Value:
    """Max with the lower bound, Min with the upper."""
    dtype = value(node).dtype
    if high is None:
        assert low is not None  # ATen has no clamp without bounds
        return onnx.op("Max", x, onnx.operand(low, dtype))
    bounded: Input = x if low is None else onnx.op("Max", x, onnx.operand(low, dtype))
    return onnx.op("Min", bounded, onnx.operand(high, dtype))


@emits(aten.where.self)
def where(onnx: OnnxBuilder, node: fx.Node, condition: fx.Node, a: fx.Node, b: fx.Node) -> ir.Value:
    """Where."""
    return onnx.op("Where", condition, a, b)


@emits(aten.where.ScalarOther)
def where_scalar_other(
    onnx: OnnxBuilder, node: fx.Node, condition: fx.Node, a: fx.Node, b: float
) -> ir.Value:
    """Where with a number in place of the second tensor."""
    return onnx.op("Where", condition, a, onnx.operand(b, value(a).dtype))


@emits(aten.where.ScalarSelf)
def where_scalar_self(onnx: OnnxBuilder, node: fx.Node, condition: fx.Node, a: float, b: fx.Node) -> ir.Value:
    """Where with a number in place of the first tensor."""
    return onnx.op("Where", condition, onnx.operand(a, value(b).dtype), b)


@emits(aten.to.dtype)
def to_dtype(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dtype: torch.dtype) -> ir.Value:
    """Cast."""
    return onnx.op("Cast", x, to=DTYPES[dtype])


@emits(aten.zeros_like.default)
def zeros_like(onnx: OnnxBuilder, node: fx.Node, x: fx.Node) -> ir.Value:
    """ConstantOfShape; not x * 0, which is NaN where x is infinite."""
    zero = ir.tensor(torch.zeros(1, dtype=value(node).dtype).numpy())
    return onnx.op("ConstantOfShape", onnx.op("Shape", x), value=zero)


@emits(aten.mean.dim)
def mean(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool = False
) -> ir.Value:
    """ReduceMean."""
    return onnx.op("ReduceMean", x, onnx.integers(dims), keepdims=int(keepdim))


@emits(aten.sum.dim_IntList)
def sum_(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dims: Sequence[int], keepdim: bool = False
) -> ir.Value:
    """ReduceSum."""
    return onnx.op("ReduceSum", x, onnx.integers(dims), keepdims=int(keepdim))


@emits(aten.argmax.default)
def argmax(onnx: OnnxBuilder, node: fx.Node, x: fx.Node, dim: int, keepdim: bool = False) -> ir.Value:
    """ArgMax."""
    return onnx.op("ArgMax", x, axis=dim, keepdims=int(keepdim))


@emits(aten.linear.default)
def linear(
    onnx: OnnxBuilder, node: fx.Node, x: fx.Node, weight: fx.Node, bias: fx.Node | None = None
) -> ir.Value:
    """Gemm for matrices, else MatMul with the weights turned in the graph, or in the file: see `apart`."""
    stored = onnx.apart(weight)
    if stored is not None:
        product = onnx.op("MatMul", x, np.ascontiguousarray(stored.T))
        return product if bias is None else onnx.op("Add", product, bias)
    if value(x).ndim == 2:
        return onnx.op("Gemm", x, weight, *([] if bias is None else [bias]), transB=1)
    product = onnx.op("MatMul", x, onnx.op("Transpose", weight, perm=[1, 0]))
    return product if bias is None else onnx.op("Add", product, bias)


@emits(aten.addmm.default)
def addmm(
    onnx: OnnxBuilder, node: fx.Node, c: fx.Node, a: fx.Node, b: fx.Node, *, beta: float = 1, alpha: float = 1
) -> ir.Value:
    """Gemm."""
    return onnx.op("Gemm", a, b, c, alpha=float(alpha), beta=float(beta))
