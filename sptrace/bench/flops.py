"""Counting what an ONNX graph computes: its convolutions and products of matrices."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping

import onnx
from onnx import numpy_helper

Shape = tuple[int, ...]

_ARITHMETIC = {"Add": operator.add, "Mul": operator.mul}
"""With which programs compute how often a loop runs."""


def gflop(onnx_model: bytes, batch: int) -> float | None:
    """The floating point operations of one run, in units of 10^9.

    A multiplication and the addition that follows count as two, as LAPACK counts (LAPACK Working Note 41) and
    torch.utils.flop_counter does. Convolutions, [N, C, ...] -> [N, M, ...] with a kernel of k cells and g groups:
    2 N M out C/g k, where `out` is the number of cells of the output; transposed ones 2 N C in M/g k. Products of
    matrices [..., m, k] [..., k, n]: 2 ... m k n. Everything else is not counted: it is bound by memory. A loop's body
    counts as often as the loop runs by default.

    Arguments:
        onnx_model: the serialized artifact; its first dimensions named N are the batch.
        batch: number of pictures.

    Returns:
        None if a shape, or a number of rounds, is not known before the graph is run.
    """
    model = onnx.load_from_string(onnx_model)
    for graph in _graphs(model.graph):
        for item in graph.input:
            for dimension in item.type.tensor_type.shape.dim:
                if dimension.dim_param:
                    dimension.dim_value = batch
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    try:
        return _count(inferred.graph, {}, {}) / 1e9
    except KeyError:
        return None


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _graphs(attribute.g)


def _count(graph: onnx.GraphProto, shapes: Mapping[str, Shape], rounds: Mapping[str, int]) -> int:
    """Operations of a graph; `shapes` and `rounds` are what is known of the names outside it."""
    shapes = {**shapes, **_shapes(graph)}
    rounds = {**rounds, **_numbers(graph)}
    total = 0
    for node in graph.node:
        if node.op_type in _ARITHMETIC and all(name in rounds for name in node.input):
            rounds[node.output[0]] = _ARITHMETIC[node.op_type](*(rounds[name] for name in node.input))
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        if node.op_type == "Loop":
            total += rounds[node.input[0]] * _count(attributes["body"], shapes, rounds)
        elif node.op_type == "Conv":
            total += 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "ConvTranspose":
            total += 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            total += 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            inner = shapes[node.input[0]][0 if attributes.get("transA") else 1]
            total += 2 * math.prod(shapes[node.output[0]]) * inner
    return total


def _shapes(graph: onnx.GraphProto) -> dict[str, Shape]:
    """The shapes that are known in full."""
    shapes = {item.name: tuple(item.dims) for item in graph.initializer}
    for item in (*graph.input, *graph.value_info, *graph.output):
        tensor = item.type.tensor_type
        if tensor.HasField("shape") and all(size.HasField("dim_value") for size in tensor.shape.dim):
            shapes[item.name] = tuple(size.dim_value for size in tensor.shape.dim)
    return shapes


def _numbers(graph: onnx.GraphProto) -> dict[str, int]:
    """The whole numbers among a graph's constants: one of them is how often a loop runs."""
    numbers = {}
    constants = [(item.name, item) for item in graph.initializer]
    constants += [
        (node.output[0], node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    ]
    for name, tensor in constants:
        if tensor.data_type == onnx.TensorProto.INT64 and math.prod(tensor.dims) == 1:
            numbers[name] = int(numpy_helper.to_array(tensor).reshape(()))
    return numbers
