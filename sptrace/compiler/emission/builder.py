"""Builds an ONNX graph node by node, with names that say which module of the network a node came from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from sptrace.compiler.graph.builder import is_batch, parameter, shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BATCH, BatchSize, Size
from sptrace.errors import UnsupportedError

OPSET = 21
IR_VERSION = 10
"""What onnxruntime 1.21 and later load."""

DTYPES = {
    torch.float32: ir.DataType.FLOAT,
    torch.float16: ir.DataType.FLOAT16,
    torch.int64: ir.DataType.INT64,
    torch.int32: ir.DataType.INT32,
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
        outputs: the names of the file's outputs. These and the inputs keep their names, whatever the network's
            own constants are called.
        outer: the builder of the graph around this one, for the body of a loop: no name stands twice in a file.
    """

    def __init__(
        self, module: fx.GraphModule, outputs: Sequence[str] = (), outer: OnnxBuilder | None = None
    ) -> None:
        self._module = module
        self._values: dict[fx.Node, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        inputs = [str(node.target) for node in module.graph.nodes if node.op == "placeholder"]
        self._names: set[str] = {*outputs, *inputs} if outer is None else outer._names
        self._current: fx.Node | None = None
        self.nodes: list[ir.Node] = []
        self.initializers: list[ir.Value] = []

    def input(self, node: fx.Node) -> ir.Value:
        """A graph input of the input's name, shape and dtype; with a default it is an initializer too."""
        name = str(node.target)
        given = ir.val(name, _dtype(node), _onnx_shape(node))
        if node.args:
            default = torch.tensor(node.args[0], dtype=value(node).dtype)
            given.const_value = ir.tensor(default.numpy(), name=name)
            self.initializers.append(given)
        self._values[node] = given
        return given

    def bind(self, node: fx.Node, given: ir.Value) -> ir.Value:
        """Let a node stand for a value that something else makes: a loop's state, or the graph around it."""
        given.dtype, given.shape = _dtype(node), ir.Shape(_onnx_shape(node))
        self._values[node] = given
        return given

    def weight(self, node: fx.Node) -> None:
        """An initializer under the constant's own name."""
        self._values[node] = self._initializer(
            str(node.target), parameter(self._module, node).contiguous().numpy()
        )

    def emit(self, node: fx.Node, emitter: Emitter) -> None:
        """Write one node of the graph."""
        self._current = node
        try:
            inspect.signature(emitter).bind(self, node, *node.args, **node.kwargs)
        except TypeError as error:
            raise UnsupportedError(
                f"the ONNX emitter for {node.target} ({source(node)}) does not cover its arguments: {error}"
            ) from None
        written = emitter(self, node, *node.args, **node.kwargs)
        written.shape, written.dtype = ir.Shape(_onnx_shape(node)), _dtype(node)
        self._values[node] = written

    def output(self, node: fx.Node, name: str) -> ir.Value:
        """A graph output under a name of its own, since the node's value may be read inside the graph too."""
        copy = ir.node("Identity", [self._values[node]], name=name)
        self.nodes.append(copy)
        (result,) = copy.outputs
        result.name = name
        result.dtype, result.shape = _dtype(node), ir.Shape(_onnx_shape(node))
        return result

    def op(self, op_type: str, *inputs: Input | None, **attributes: Any) -> ir.Value:
        """Append an ONNX node.

        Inputs are nodes of the graph, values, arrays (which become shared constants), or None for one left out.
        """
        (result,) = self.outputs_of(op_type, 1, *inputs, **attributes)
        return result

    def outputs_of(
        self, op_type: str, count: int, *inputs: Input | None, **attributes: Any
    ) -> Sequence[ir.Value]:
        """The same for an op with several outputs."""
        assert self._current is not None
        name = self.unique(f"{_origin(self._current)}/{op_type}")
        given = [None if item is None else self._as_value(item) for item in inputs]
        node = ir.node(op_type, given, attributes, num_outputs=count, name=name)
        self.nodes.append(node)
        first, *others = node.outputs
        first.name = name
        for index, result in enumerate(others, start=1):
            result.name = self.unique(f"{name}/{index}")
        return node.outputs

    def loop(self, node: fx.Node, body: ir.Graph, inputs: Sequence[Input]) -> Sequence[ir.Value]:
        """Append a Loop; inputs are the number of rounds, then the state. Returns the state after the last round."""
        self._current = node
        name = self.unique(f"{node.name}/Loop")
        rounds, *state = (self._as_value(item) for item in inputs)
        # The condition may be left out; onnx 1.23's reference evaluator then runs no round.
        loop = ir.node(
            "Loop",
            [rounds, self._as_value(np.array(True)), *state],
            {"body": body},
            num_outputs=len(state),
            name=name,
        )
        self.nodes.append(loop)
        for index, result in enumerate(loop.outputs):
            result.name = self.unique(f"{name}/{index}")
        return loop.outputs

    def value(self, node: fx.Node) -> ir.Value:
        """What was written for a node."""
        return self._values[node]

    def is_bound(self, node: fx.Node) -> bool:
        """Has something been written for a node?"""
        return node in self._values

    def integers(self, numbers: Sequence[int]) -> np.ndarray[Any, Any]:
        """A one-dimensional int64 constant: a shape, axes, starts, ends."""
        return np.array(numbers, dtype=np.int64)

    def size(self, node: fx.Node, size: Size) -> int | ir.Value:
        """A size for `node`: a number or, where it depends on the batch, an int64 [1] that is computed in the file."""
        if not isinstance(size, BatchSize):
            return size
        pictures = next(item for item in node.graph.nodes if item.op == "placeholder" and _is_batched(item))
        batch = self.op("Shape", pictures, start=0, end=1)
        return batch if size == BATCH else self.op("Mul", batch, self.integers([size.each]))

    def apart(self, weight: fx.Node) -> np.ndarray[Any, Any] | None:
        """A copy of weights for one direction of the graph, where one constant must not serve both; else None.

        OpenVINO 2026.4 packs a constant once. Of a square one that Conv and ConvTranspose share, or a product and
        the product with its transpose, it then reads one as the other. (Runtimes that pack weights hold both anyway.)
        """
        stored = self._values[weight].const_value
        if stored is None or len(weight.users) < 2 or stored.shape[0] != stored.shape[1]:
            return None
        return stored.numpy()

    def operand(self, argument: fx.Node | float, dtype: torch.dtype) -> Input:
        """An argument of an arithmetic op in the dtype in which it computes: ONNX converts nothing of itself."""
        if not isinstance(argument, fx.Node):
            return torch.tensor(argument, dtype=dtype).numpy()
        return argument if value(argument).dtype == dtype else self.op("Cast", argument, to=DTYPES[dtype])

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
        name = self.unique(preferred)
        tensor = ir.tensor(data, name=name)
        initializer = ir.val(name, tensor.dtype, data.shape, const_value=tensor)
        self.initializers.append(initializer)
        return initializer

    def unique(self, preferred: str) -> str:
        """A name that nothing else in the file has."""
        name, number = preferred, 2
        while name in self._names:
            name, number = f"{preferred}_{number}", number + 1
        self._names.add(name)
        return name


def source(node: fx.Node) -> str:
    """The line of the network that a node came from, for messages."""
    return str(facts(node).source)


def _dtype(node: fx.Node) -> ir.DataType:
    dtype = value(node).dtype
    if dtype not in DTYPES:
        known = ", ".join(str(other).removeprefix("torch.") for other in DTYPES)
        raise UnsupportedError(
            f"{node.name!r} ({source(node)}) is {str(dtype).removeprefix('torch.')}: use one of {known}"
        )
    return DTYPES[dtype]


def _is_batched(node: fx.Node) -> bool:
    return value(node).ndim > 0 and is_batch(node, 0)


def _origin(node: fx.Node) -> str:
    """The module path that a node came from, "/pullback" after it for its adjoint."""
    path = facts(node).path or "network"
    return f"{path}/pullback" if facts(node).adjoint else path


def _onnx_shape(node: fx.Node) -> list[int | str | None]:
    """The shape for the file; the batch is called N, a multiple of it stays open."""
    return [size if isinstance(size, int) else "N" if size == BATCH else None for size in shape(node)]
