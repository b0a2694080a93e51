"""What does not depend on the image is computed once, now, and stored in the file."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sptrace.compiler.graph.builder import SHAPED_ALIKE, GraphBuilder, parameter, shape
from sptrace.compiler.graph.facts import facts, learn
from sptrace.compiler.graph.sizes import BATCHES, BatchSize, Size
from sptrace.errors import UnsupportedError
from sptrace.passes.functionalize import memory_of, written_by

aten = torch.ops.aten

Values = tuple[Any, ...]
"""What a node gives at each of `BATCHES`; the very same object if the batch does not matter."""


def fold_constants(module: fx.GraphModule) -> int:
    """Replace tensors that are computed from constants alone by their values; returns how many ops that took.

    1. i = arange(49); t = index(table, [i]); y = add(x, t)        ->  y = add(x, get_attr("folded"))
    2. new_zeros(image, [7, 7]), zeros_like(y)                     ->  get_attr, for they read no numbers
    3. m = ones([n, 1, 9, 9], bool); y = attention(q, k, v, m)     ->  m = expand(get_attr("folded"), [n, 1, 9, 9])
    4. o = zeros_like(y); copy_(slice(o, 1, 0, 4), y)              ->  one o = expand(get_attr("folded"), ...)

    It runs the constant part of the network in its own order, so that a constant may also be made in place (a mask
    filled piece by piece); a reader gets the value of its own moment. A value that is the same for every picture of
    the batch is stored for one. Declines where it is not, and where an op is random or overwrites the network's own
    parameters.
    """
    builder = GraphBuilder(module)
    run = _Run(module)
    # By the node and the state of its memory: what several readers read is stored once.
    stored: dict[tuple[fx.Node, int], fx.Node] = {}
    for node in list(module.graph.nodes):
        if run.takes(node) and run.known[node][0] is run.known[node][1]:
            continue
        for argument in node.all_input_nodes:
            constant = _for_every_picture(argument, run.known[argument]) if run.computed(argument) else None
            if constant is None:
                continue
            key = (argument, run.known[argument][0]._version)
            with builder.replacing(node):
                if key not in stored:
                    name = f"{facts(argument).path}.folded" if facts(argument).path else "folded"
                    stored[key] = builder.constant(name, constant.clone())
                    if argument in run.filled:  # all readers see what is written to it
                        learn(stored[key], is_filled=True)
                        stored[key] = builder.expand(stored[key], shape(argument))
                        # The memory that its views share.
                        learn(stored[key], values=facts(argument).values)
                kept = stored[key]
                same = kept if argument in run.filled else builder.expand(kept, shape(argument))
                node.replace_input_with(argument, same)
    folded = [node for node in run.known if node.op == "call_function"]
    written = []
    count = 0
    for node in reversed(folded):
        if not node.users:
            if _writes(node):
                written.append(run.known[node][0].untyped_storage().data_ptr())
            module.graph.erase_node(node)
            count += 1
        elif run.computed(node) and run.known[node][0].untyped_storage().data_ptr() in written:
            where = facts(node).source
            raise UnsupportedError(f"a constant that differs between pictures is made in place ({where})")
    return count


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


def _filled(module: fx.GraphModule) -> set[fx.Node]:
    """All nodes of memory into which an op writes what depends on the image."""
    dependent = {node for node in module.graph.nodes if node.op == "placeholder"}
    written: set[int] = set()
    for node in module.graph.nodes:
        is_tensor = node.op == "call_function" and not isinstance(facts(node).first, int)
        if is_tensor and any(
            argument in dependent or memory_of(argument) & written
            for argument in node.all_input_nodes
            if not _reads_shape_alone(node, argument)
        ):
            dependent.add(node)
            for argument in written_by(node):
                written |= memory_of(argument) if isinstance(argument, fx.Node) else set()
    own = set().union(
        *(memory_of(node) for node in module.graph.nodes if node.op in ("get_attr", "placeholder"))
    )
    return {
        node
        for node in module.graph.nodes
        if node.op == "call_function" and memory_of(node) & (written - own)
    }


def _reads_shape_alone(node: fx.Node, argument: fx.Node) -> bool:
    return node.target in SHAPED_ALIKE and argument is node.args[0] and argument not in node.args[1:]


class _Run:
    """Computes the nodes that need no image, for each size of the batch."""

    def __init__(self, module: fx.GraphModule) -> None:
        self.known: dict[fx.Node, Values] = {}
        self._module = module
        self._own: set[int] = set()
        self._changed = {
            storage
            for node in module.graph.nodes
            for argument in written_by(node)
            if isinstance(argument, fx.Node)
            for storage in memory_of(argument)
        }
        self.filled = _filled(module)
        """Memory that is allocated as a constant, and then filled with what depends on the image."""

    def computed(self, node: fx.Node) -> bool:
        """Is it a tensor that an op made of constants?"""
        return node in self.known and node.op == "call_function" and isinstance(self.known[node][0], Tensor)

    def takes(self, node: fx.Node) -> bool:
        """Compute the node if that is possible."""
        if node.op == "get_attr" and memory_of(node) & self._changed:
            return False
        if node.op == "get_attr":
            data = parameter(self._module, node)
            self._own.add(data.untyped_storage().data_ptr())
            self.known[node] = (data,) * len(BATCHES)
        elif node.op == "call_function" and isinstance(facts(node).first, int):
            self.known[node] = facts(node).values
        elif node.op == "call_function" and self._is_constant(node):
            alike = all(self._is_same(argument) for argument in node.all_input_nodes) and not any(
                isinstance(size, BatchSize) for size in _sizes(node)
            )
            if not alike and _writes(node) and self._is_same(node.args[0]):  # type: ignore[arg-type]
                return False  # one memory cannot hold two values
            if alike:
                self.known[node] = (self._run(node, 0),) * len(BATCHES)
            else:
                self.known[node] = tuple(self._run(node, index) for index in range(len(BATCHES)))
        else:
            return False
        return True

    def _is_constant(self, node: fx.Node) -> bool:
        if any(
            argument in self.filled and not _reads_shape_alone(node, argument)
            for argument in node.all_input_nodes
        ):
            return False  # only the memory itself is constant, when it is new
        if node.target in SHAPED_ALIKE:
            # Only the tensor itself may be unknown: of that they read no numbers.
            return all(
                argument in self.known for argument in node.all_input_nodes if argument is not node.args[0]
            )
        if not all(argument in self.known for argument in node.all_input_nodes):
            return False
        if not isinstance(node.target, OpOverload):
            return node.target is operator.getitem
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            return False
        if not _writes(node):
            return True
        (place,) = written_by(node)[:1]
        changed = self.known[place][0]
        return isinstance(changed, Tensor) and changed.untyped_storage().data_ptr() not in self._own

    def _run(self, node: fx.Node, index: int) -> Any:
        pick: Callable[[fx.Node], Any] = partial(self._value, index)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), pick)
        assert callable(node.target)
        with torch.no_grad():
            return node.target(*args, **kwargs)

    def _value(self, index: int, node: fx.Node) -> Any:
        if node in self.known:
            return self.known[node][index]
        return torch.zeros_like(facts(node).values[index], device="cpu")

    def _is_same(self, node: fx.Node) -> bool:
        """Is the value the same whatever the size of the batch?"""
        if node not in self.known:
            return True
        first, second = self.known[node]
        return first is second or (not isinstance(first, Tensor | tuple | list) and bool(first == second))


def _sizes(node: fx.Node) -> list[Size]:
    return shape(node) if isinstance(facts(node).first, Tensor) else []


def _for_every_picture(node: fx.Node, values: Values) -> Tensor | None:
    """The value, with size 1 wherever the size depends on the batch; None if the pictures' values differ."""
    first, second = (cast(Tensor, value) for value in values)
    if first is second:
        return first
    for dim, size in enumerate(shape(node)):
        if isinstance(size, BatchSize):
            first, second = first.narrow(dim, 0, 1), second.narrow(dim, 0, 1)
    same = all(
        _is_same(one.expand_as(value), value) for one, value in zip((first, second), values, strict=True)
    )
    return first if same and _is_same(first, second) else None


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Equal, where NaN equals NaN: memory that is yet to be filled."""
    return first.shape == second.shape and bool(
        ((first == second) | ((first != first) & (second != second))).all()
    )
