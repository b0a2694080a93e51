"""Trigonometric and hyperbolic functions and their inverses."""

from __future__ import annotations

import math

import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import OnnxBuilder, emits
from sptrace.compiler.graph.builder import aten, value
from sptrace.compiler.graph.facts import Target

NAMES: dict[Target, str] = {
    aten.sin.default: "Sin",
    aten.cos.default: "Cos",
    aten.tan.default: "Tan",
    aten.asin.default: "Asin",
    aten.acos.default: "Acos",
    aten.atan.default: "Atan",
    aten.sinh.default: "Sinh",
    aten.cosh.default: "Cosh",
    aten.asinh.default: "Asinh",
    aten.acosh.default: "Acosh",
    aten.atanh.default: "Atanh",
}


def _register(target: Target, op_type: str) -> None:
    emits(target)(lambda onnx, node, x: onnx.op(op_type, x))


for _target, _op_type in NAMES.items():
    _register(_target, _op_type)


@emits(aten.atan2.default)
def atan2(onnx: OnnxBuilder, node: fx.Node, a: fx.Node, b: fx.Node) -> ir.Value:
    """Atan of the quotient, and half a turn more where b is below 0; ONNX has no op for the angle itself."""
    zero, one, half, quarter = (
        onnx.operand(number, value(node).dtype) for number in (0.0, 1.0, math.pi, math.pi / 2)
    )
    upright = onnx.op("Equal", b, zero)
    angle = onnx.op("Atan", onnx.op("Div", a, onnx.op("Where", upright, one, b)))
    turn = onnx.op("Where", onnx.op("Less", a, zero), onnx.op("Neg", half), half)
    turned = onnx.op("Where", onnx.op("Less", b, zero), onnx.op("Add", angle, turn), angle)
    return onnx.op("Where", upright, onnx.op("Mul", onnx.op("Sign", a), quarter), turned)
