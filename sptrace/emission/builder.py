"""Builds an ONNX graph node by node, with names that say which module of the network a node came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from sptrace.graph import Target, is_batch, parameter, shape, value

OPSET = 21
IR_VERSION = 10
"""What onnxruntime 1.21 and later load."""

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.int64: ir.DataType.INT64,
    torch.bool: ir.DataType.BOOL,
}

Input = ir.Value | fx.Node | np.ndarray[Any, Any]
Emitter = Callable[..., ir.Value]

EMITTERS: dict[Target, Emitter] = {}


def emits(*targets: Target) -> Callable[[Emitter], Emitter]:
    """Enter an emitter into the table under the ops that it writes.

    An emitter is called with the builder, the node, and the node's arguments; it returns the ONNX value of the node.
    """

    def enter(emitter: Emitter) -> Emitter:
        for target in targets:
            assert target not in EMITTERS, f"{target} has two emitters"
            EMITTERS[target] = emitter
        return emitter

    return enter


class OnnxBuilder:
    """Collects ONNX nodes and initializers.

    Arguments:
        module: the graph module that is being written; its constants become initializers when they are first used.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._values: dict[fx.Node, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._names: set[str] = set()
        self._current: fx.Node | None = None
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def input(self, node: fx.Node) -> ir.Value:
        """A graph input of the node's name, shape and dtype."""
        self._values[node] = ir.val(self._unique(node.name), DTYPES[value(node).dtype], _onnx_shape(node))
        return self._values[node]

    def weight(self, node: fx.Node) -> None:
        """An initializer under the constant's own name."""
        self._values[node] = self._initializer(
            str(node.target), parameter(self._module, node).contiguous().numpy()
        )

    def emit(self, node: fx.Node, emitter: Emitter) -> None:
        """Write one node of the graph."""
        self._current = node
        written = emitter(self, node, *node.args, **node.kwargs)
        written.shape, written.dtype = ir.Shape(_onnx_shape(node)), DTYPES[value(node).dtype]
        self._values[node] = written

    def output(self, node: fx.Node, name: str) -> ir.Value:
        """A graph output under a name of its own, since the node's value may be read inside the graph too."""
        copy = ir.node("Identity", [self._values[node]], name=name)
        self.nodes.append(copy)
        (result,) = copy.outputs
        result.name = name
        result.dtype, result.shape = DTYPES[value(node).dtype], ir.Shape(_onnx_shape(node))
        return result

    def op(self, op_type: str, *inputs: Input, **attributes: Any) -> ir.Value:
        """Append an ONNX node; inputs are nodes of the graph, values, or arrays (which become shared constants)."""
        assert self._current is not None
        name = self._unique(f"{_origin(self._current)}/{op_type}")
        node = ir.node(op_type, [self._as_value(item) for item in inputs], attributes, name=name)
        self.nodes.append(node)
        (result,) = node.outputs
        result.name = name
        return result

    def integers(self, numbers: Sequence[int]) -> np.ndarray[Any, Any]:
        """A one-dimensional int64 constant: a shape, axes, starts, ends."""
        return np.array(numbers, dtype=np.int64)

    def operand(self, argument: fx.Node | float, like: fx.Node) -> Input:
        """An argument of an arithmetic op: a node, or a number in the dtype of `like`."""
        if isinstance(argument, fx.Node):
            return argument
        return torch.tensor(argument, dtype=value(like).dtype).numpy()

    def _as_value(self, item: Input) -> ir.Value:
        if isinstance(item, fx.Node):
            return self._values[item]
        if isinstance(item, ir.Value):
            return item
        key = (str(item.dtype), item.shape, item.tobytes())
        if key not in self._constants:
            self._constants[key] = self._initializer("constant", item)
        return self._constants[key]

    def _initializer(self, preferred: str, data: np.ndarray[Any, Any]) -> ir.Value:
        name = self._unique(preferred)
        tensor = ir.tensor(data, name=name)
        initializer = ir.val(name, tensor.dtype, data.shape, const_value=tensor)
        self.initializers.append(initializer)
        return initializer

    def _unique(self, preferred: str) -> str:
        name, number = preferred, 2
        while name in self._names:
            name, number = f"{preferred}_{number}", number + 1
        self._names.add(name)
        return name


def _origin(node: fx.Node) -> str:
    """The module path that a node came from, "/pullback" after it for its adjoint."""
    path = node.meta["path"] or "network"
    return f"{path}/pullback" if node.meta["adjoint"] else path


def _onnx_shape(node: fx.Node) -> list[int | str | None]:
    """The shape for the file; the batch is called N, a size computed from it stays open."""
    return [
        size if size != -1 else "N" if is_batch(node, dim) else None for dim, size in enumerate(shape(node))
    ]
