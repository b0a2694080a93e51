"""Building torch.fx graphs of ATen ops in which every node knows the shape and dtype of its value (`graph.facts`)."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.facts import Facts, Target, facts, learn, record
from sptrace.compiler.graph.sizes import BATCH, BATCHES, BatchSize, Size, literal, size_of
from sptrace.errors import UnsupportedError

aten = torch.ops.aten

PERMUTATIONS = {aten.permute.default, aten.transpose.int}

_META = torch.device("meta")

IN_ANOTHER_SHAPE: dict[Target, Target] = {
    aten.squeeze_.default: aten.squeeze.default,
    aten.squeeze_.dim: aten.squeeze.dim,
    aten.squeeze_.dims: aten.squeeze.dims,
    aten.unsqueeze_.default: aten.unsqueeze.default,
    aten.transpose_.default: aten.transpose.int,
    aten.swapaxes_.default: aten.transpose.int,
    aten.swapdims_.default: aten.transpose.int,
    aten.t_.default: aten.t.default,
    aten.detach_.default: aten.detach.default,
}
"""What changes in place how a tensor is seen, and no number; and the op that gives that."""


def value(node: fx.Node) -> Tensor:
    """What the node gives for the first of `BATCHES`: rank and dtype without data."""
    first = facts(node).first
    assert isinstance(first, Tensor), f"{node} is no tensor but {first!r}"
    return first


def shape(node: fx.Node) -> list[Size]:
    """The shape of a node's tensor. Sizes compare as they should: N, k N and a number are never the same."""
    try:
        return [
            size_of(sizes) for sizes in zip(*(tensor.shape for tensor in facts(node).values), strict=True)
        ]
    except UnsupportedError as error:
        raise UnsupportedError(complaint(node, str(error))) from None


def is_batch(node: fx.Node, dim: int) -> bool:
    """Is this size the batch itself, rather than something computed from it?"""
    return shape(node)[dim] == BATCH


def complaint(node: fx.Node, what: str) -> str:
    """The message for a node through which one picture's answer would depend on others."""
    where = facts(node).source
    return f"{what} ({node.name!r}, {where}): let the network compute each picture by itself"


def propagate(node: fx.Node) -> None:
    """Work out `values` of a call from those of its arguments."""
    results = []
    for index in range(len(BATCHES)):
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), partial(_value_at, index))
        args = tuple(_META if isinstance(item, torch.device) else item for item in args)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _META}
        with torch.no_grad():
            results.append(node.target(*args, **kwargs))  # type: ignore[operator]
    learn(node, values=tuple(results))


def _value_at(index: int, node: fx.Node) -> Any:
    return facts(node).values[index]


def without_data(*sizes: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """`values` of an input whose first size is the batch."""
    return tuple(torch.empty(batch, *sizes, dtype=dtype, device="meta") for batch in BATCHES)


def static_shape(node: fx.Node, dims: Sequence[int]) -> list[int]:
    """The sizes of the dimensions `dims`.

    Raises:
        UnsupportedError: one of them depends on the batch.
    """
    sizes = shape(node)
    chosen = [sizes[dim] for dim in dims]
    numbers = [size for size in chosen if not isinstance(size, BatchSize)]
    if len(numbers) < len(chosen):
        raise UnsupportedError(complaint(node, "pictures of a batch are combined with each other"))
    return numbers


def permutation(node: fx.Node) -> list[int] | None:
    """A transposition or permutation as the list of the input's dimensions; None if the node is neither."""
    dims = list(range(value(node).ndim)) if node.target in PERMUTATIONS else []
    if node.target == aten.permute.default:
        return [dims[dim] for dim in node.args[1]]  # type: ignore[union-attr, index]
    if node.target == aten.transpose.int:
        first, second = (dims[dim] for dim in node.args[1:3])  # type: ignore[index]
        dims[first], dims[second] = second, first
        return dims
    return None


def parameter(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The data of a get_attr node."""
    owner, _, leaf = str(node.target).rpartition(".")
    data = getattr(module.get_submodule(owner), leaf)
    assert isinstance(data, Tensor)
    return data


def place(module: fx.GraphModule, preferred: str, data: Tensor) -> str:
    """Store a constant in `module` under the path `preferred`, with numbers where names are taken; returns the path."""
    *owners, leaf = preferred.split(".")
    owner: torch.nn.Module = module
    path = []
    for name in owners:
        path.append(_free(owner, name, torch.nn.Module))
        if not hasattr(owner, path[-1]):
            owner.register_module(path[-1], torch.nn.Module())
        owner = owner.get_submodule(path[-1])
    path.append(_free(owner, leaf))
    owner.register_buffer(path[-1], data.detach())
    return ".".join(path)


def _free(owner: torch.nn.Module, name: str, *allowed: type) -> str:
    """`name`, or that with a number, under which `owner` has nothing or something of an allowed type."""
    free, number = name, 1
    while hasattr(owner, free) and not isinstance(getattr(owner, free), allowed):
        free, number = f"{name}_{number}", number + 1
    return free


def depends_on(graph: fx.Graph, source: fx.Node) -> set[fx.Node]:
    """All nodes that are computed from the tensor `source` and can carry a cotangent.

    Sizes that are read off it cannot, nor can tensors of booleans or whole numbers: masks, and places of maxima.
    """
    dependent = {source}
    for node in graph.nodes:
        if _is_continuous(facts(node).first) and any(
            argument in dependent for argument in node.all_input_nodes
        ):
            dependent.add(node)
    return dependent


SHAPED_ALIKE: set[Target] = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.new_zeros.default,
    aten.new_ones.default,
    aten.new_full.default,
}
"""Ops that read the shape or dtype of their first argument, not its numbers."""


def influenced_by(graph: fx.Graph, source: fx.Node) -> set[fx.Node]:
    """All nodes whose numbers depend on those of `source`: masks and places of maxima too, but no sizes."""
    influenced = {source}
    for node in graph.nodes:
        first = facts(node).first
        if not isinstance(first, Tensor | tuple | list) or node.target in SHAPED_ALIKE:
            continue
        if any(argument in influenced for argument in node.all_input_nodes):
            influenced.add(node)
    return influenced


def _is_continuous(given: Any) -> bool:
    """Is it a tensor of real or complex numbers, or has an op given one among others?"""
    if isinstance(given, tuple | list):
        return any(_is_continuous(item) for item in given)
    return isinstance(given, Tensor) and (given.is_floating_point() or given.is_complex())


def placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """The graph's input called `name`. Its node may have a number behind that name, if another node came first."""
    found: fx.Node = next(node for node in graph.nodes if node.op == "placeholder" and node.target == name)
    return found


def forget_constants(module: fx.GraphModule, kept: Collection[str]) -> None:
    """Drop the constants that the graph does not read, but for those whose paths are kept: they take memory."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"} | set(kept)
    for path in [path for path, _ in module.named_buffers(remove_duplicate=False) if path not in read]:
        owner, _, leaf = path.rpartition(".")
        delattr(module.get_submodule(owner), leaf)


class GraphBuilder:
    """Adds nodes to a graph and works out their shapes and dtypes as it goes.

    Arguments:
        module: the graph module whose graph grows.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self._facts = Facts()

    @contextmanager
    def origin(self, node: fx.Node, *, adjoint: bool) -> Iterator[None]:
        """Within this context new nodes are recorded as coming from where `node` came from."""
        previous = self._facts
        self._facts = replace(facts(node), values=(), adjoint=adjoint, is_filled=False)
        try:
            yield
        finally:
            self._facts = previous

    @contextmanager
    def replacing(self, node: fx.Node) -> Iterator[None]:
        """Within this context new nodes stand before `node` and are recorded as coming from where it came from.

        Their `written_for` is the op that the network called.
        """
        with self.graph.inserting_before(node), self.origin(node, adjoint=facts(node).adjoint):
            if self._facts.written_for is None:
                self._facts = replace(self._facts, written_for=node.target)  # type: ignore[arg-type]
            yield

    def call(self, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call; arguments are nodes, numbers, or lists of them."""
        node = self.graph.call_function(target, args, kwargs)
        record(node, self._facts)
        propagate(node)
        return node

    def constant(self, preferred: str, data: Tensor) -> fx.Node:
        """A constant stored in the module under the path `preferred` (or a path like it that is free)."""
        node = self.graph.get_attr(place(self.module, preferred, data))
        record(node, replace(self._facts, values=(data.to("meta"),) * len(BATCHES)))
        return node

    def replace_constant(self, old: fx.Node, preferred: str, data: Tensor) -> fx.Node:
        """A constant in place of another, for the one node that reads that; the other is forgotten."""
        (reader,) = old.users
        if not any(node.target == old.target for node in self.graph.nodes if node is not old):
            owner, _, leaf = str(old.target).rpartition(".")
            delattr(self.module.get_submodule(owner), leaf)
        new = self.constant(preferred, data)
        reader.replace_input_with(old, new)
        self.graph.erase_node(old)
        return new

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all users of `old` use `new`, and remove `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def reshape(self, node: fx.Node, sizes: Sequence[Size]) -> fx.Node:
        """`node` in another shape; a size of -1 is what the others leave over.

        Raises:
            UnsupportedError: more than one size depends on the batch.
        """
        if list(sizes) == shape(node):
            return node
        try:
            wanted = literal(sizes)
        except UnsupportedError as error:
            raise UnsupportedError(complaint(node, str(error))) from None
        result = self.call(aten.reshape.default, node, wanted)
        assert all(size in (-1, given) for size, given in zip(sizes, shape(result), strict=True)), (
            f"{shape(node)} reshaped to {sizes} is {shape(result)}"
        )
        return result

    def expand(self, node: fx.Node, sizes: Sequence[Size]) -> fx.Node:
        """`node` copied along dimensions of size 1, and along new ones in front, until it has these sizes."""
        given = [1] * (len(sizes) - value(node).ndim) + shape(node)
        if list(sizes) == given and len(given) == value(node).ndim:
            return node
        new = len(sizes) - value(node).ndim
        wanted = [
            -1 if dim >= new and size == before else self.number(size)
            for dim, (size, before) in enumerate(zip(sizes, given, strict=True))
        ]
        return self.call(aten.expand.default, node, wanted)

    def number(self, size: Size) -> int | fx.Node:
        """A size as an argument: a number, or a multiple of the batch size, computed."""
        if not isinstance(size, BatchSize):
            return size
        pictures = next(
            item
            for item in self.graph.nodes
            if item.op == "placeholder" and value(item).ndim and is_batch(item, 0)
        )
        count = self.call(aten.sym_size.int, pictures, 0)
        return count if size == BATCH else self.call(operator.mul, count, size.each)
