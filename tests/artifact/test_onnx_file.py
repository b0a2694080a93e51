from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sptrace.artifact.onnx_file import Value, outline
from sptrace.errors import SptraceError


def operators(graph: onnx.GraphProto) -> Iterator[str]:
    """The same count by the onnx package."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from operators(attribute.g)
            for subgraph in attribute.graphs:
                yield from operators(subgraph)


def nested_model() -> onnx.ModelProto:
    """A `Loop` whose body holds an `If`; tensors, integers, floats and lists among the attributes."""

    def branch(name: str, *types: str) -> onnx.GraphProto:
        nodes, value = [], "x_in"
        for number, kind in enumerate(types):
            nodes.append(helper.make_node(kind, [value], [f"{name}{number}"]))
            value = f"{name}{number}"
        return helper.make_graph(
            nodes, name, [], [helper.make_tensor_value_info(value, TensorProto.FLOAT, [2])]
        )

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep_in"], ["keep_out"]),
            helper.make_node(
                "If",
                ["keep_in"],
                ["x_out"],
                then_branch=branch("then", "Relu", "Neg", "Relu"),
                else_branch=branch("else", "Exp"),
            ),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("keep_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, [2]),
        ],
    )
    nodes = [
        helper.make_node("Constant", [], ["steps"], value=numpy_helper.from_array(np.array(5, np.int64))),
        helper.make_node("Loop", ["steps", "", "x"], ["y"], body=body),
        helper.make_node("LeakyRelu", ["y"], ["z"], alpha=0.1),
        helper.make_node("Transpose", ["z"], ["out"], perm=[0]),
    ]
    graph = helper.make_graph(
        nodes,
        "outer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [2])],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.example", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_nodes_are_counted_in_loops_and_branches(tmp_path: Path) -> None:
    model = nested_model()
    onnx.save(model, tmp_path / "nested.onnx")
    counted = outline(tmp_path / "nested.onnx").operators
    assert counted == Counter(operators(model.graph))
    assert counted["Relu"] == 2
    assert list(counted.values()) == sorted(counted.values(), reverse=True)


def test_versions_and_metadata(tmp_path: Path) -> None:
    model = nested_model()
    helper.set_model_props(model, {"key": "välue", "other": ""})
    onnx.save(model, tmp_path / "nested.onnx")
    file = outline(tmp_path / "nested.onnx")
    assert file.ir_version == 10
    assert file.opsets == {"": 21, "com.example": 3}
    assert file.metadata == {"key": "välue", "other": ""}
    assert file.size == (tmp_path / "nested.onnx").stat().st_size


def test_inputs_and_outputs(toy: Any) -> None:
    file = outline(toy.path)
    assert file.inputs == (Value("image", "float32", ("N", 3, 24, 32)), Value("target", "int64", ("N",)))
    assert file.outputs == (
        Value("attribution", "float32", ("N", 3, 24, 32)),
        Value("logits", "float32", ("N", 7)),
    )


@pytest.mark.parametrize("dtype", ["FLOAT16", "DOUBLE", "UINT8", "BOOL", "INT32", "BFLOAT16"])
def test_types_are_called_as_numpy_calls_them(tmp_path: Path, dtype: str) -> None:
    element = getattr(TensorProto, dtype)
    values = [helper.make_tensor_value_info("x", element, [None, 0, "K"])]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["x"])], "g", values, values)
    onnx.save(helper.make_model(graph), tmp_path / "typed.onnx")
    expected = "bfloat16" if dtype == "BFLOAT16" else str(helper.tensor_dtype_to_np_dtype(element))
    assert outline(tmp_path / "typed.onnx").inputs == (Value("x", expected, ("?", 0, "K")),)


def test_weights_are_not_read(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.zeros((2000, 2000), np.float32), "weight")
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2000, 2000])
    node = helper.make_node("Add", ["x", "weight"], ["y"])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2000, 2000])
    onnx.save(
        helper.make_model(helper.make_graph([node], "g", [value], [output], [weight])), tmp_path / "big.onnx"
    )
    tracemalloc.start()
    try:
        assert outline(tmp_path / "big.onnx").operators == {"Add": 1}
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000 < (tmp_path / "big.onnx").stat().st_size


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SptraceError, match=r"cannot read .*nowhere\.onnx: No such file"):
        outline(tmp_path / "nowhere.onnx")
    with pytest.raises(SptraceError, match=r"cannot read .*: Is a directory"):
        outline(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\x89PNG\r\n\x1a\n", b"a text\n" * 50, b"\xff" * 1000, bytes(100), b"\x08\x0a"]
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.onnx").write_bytes(content)
    with pytest.raises(SptraceError, match="is not an ONNX file"):
        outline(tmp_path / "other.onnx")


def test_damaged_files_raise_nothing_else(toy: Any, make_toy: Callable[..., Any]) -> None:
    """Cut or altered anywhere, a file is read or refused."""
    content = toy.path.read_bytes()
    random = np.random.default_rng(0)
    damaged = [content[:length] for length in range(0, len(content), 53)]
    for position, byte in zip(random.integers(len(content), size=300), random.bytes(300), strict=True):
        damaged.append(content[:position] + bytes([byte]) + content[position + 1 :])
    refused = 0
    for data in damaged:
        toy.path.write_bytes(data)
        try:
            outline(toy.path)
        except SptraceError:
            refused += 1
    assert refused > len(content) // 53 / 2


def test_graphs_within_graphs_without_end_are_refused(tmp_path: Path) -> None:
    def field(number: int, content: bytes) -> bytes:
        length = len(content)
        size = (
            bytes([length])
            if length < 128
            else bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14])
        )
        return bytes([number << 3 | 2]) + size + content

    graph = b""
    for _ in range(1500):  # a node with an attribute that is a graph
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "deep.onnx").write_bytes(b"\x08\x0a" + field(7, graph))
    with pytest.raises(SptraceError, match="is not an ONNX file"):
        outline(tmp_path / "deep.onnx")
