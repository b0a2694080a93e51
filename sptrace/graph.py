"""Building torch.fx graphs of ATen ops in which every node knows the shape and dtype of its value.

A node's ``meta`` holds:

- ``val``: a fake tensor (shape with a symbolic batch, dtype, no data), or a number for size arithmetic;
- ``path``: the module path that the node came from, for example "layer1.0.conv1";
- ``adjoint``: True for nodes of the pullback;
- ``source``: file, line and text of the network's own code, for error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode

Target = Callable[..., Any]
"""What a call_function node calls: an ATen overload or a gate of `sptrace.gates`."""


def value(node: fx.Node) -> Tensor:
    """The fake tensor of a node: shape and dtype without data."""
    fake = node.meta["val"]
    assert isinstance(fake, Tensor), f"{node} is no tensor but {fake!r}"
    return fake


def shape(node: fx.Node) -> list[int]:
    """The shape of a node's tensor, -1 for symbolic sizes (the batch)."""
    return [size if isinstance(size, int) else -1 for size in value(node).shape]


def static_shape(node: fx.Node, dims: Sequence[int]) -> list[int]:
    """The sizes of the dimensions `dims`, which must not depend on the batch."""
    sizes = shape(node)
    assert -1 not in (chosen := [sizes[dim] for dim in dims]), f"{node} has no fixed size in {dims}: {sizes}"
    return chosen


def parameter(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The data of a get_attr node."""
    owner, _, leaf = str(node.target).rpartition(".")
    data = getattr(module.get_submodule(owner), leaf)
    assert isinstance(data, Tensor)
    return data


def place(module: fx.GraphModule, preferred: str, data: Tensor) -> str:
    """Store a constant in `module` under the path `preferred`, or that path with a number if it is taken; returns the path."""
    owner_path, _, leaf = preferred.rpartition(".")
    owner: torch.nn.Module = module
    for name in owner_path.split(".") if owner_path else []:
        if not isinstance(getattr(owner, name, None), torch.nn.Module):
            owner.register_module(name, torch.nn.Module())
        owner = owner.get_submodule(name)
    free, number = leaf, 1
    while hasattr(owner, free):
        free, number = f"{leaf}_{number}", number + 1
    owner.register_buffer(free, data.detach())
    return f"{owner_path}.{free}" if owner_path else free


def depends_on(graph: fx.Graph, source: fx.Node) -> set[fx.Node]:
    """All nodes whose tensor is computed from the tensor `source`; sizes read off it do not count."""
    dependent = {source}
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), Tensor | tuple | list) and any(
            argument in dependent for argument in node.all_input_nodes
        ):
            dependent.add(node)
    return dependent


def placeholder(graph: fx.Graph, name: str) -> fx.Node:
    """The graph's input called `name`."""
    return next(node for node in graph.nodes if node.op == "placeholder" and node.name == name)


class GraphBuilder:
    """Adds nodes to a graph and works out their shapes and dtypes as it goes.

    Arguments:
        module: the graph module whose graph grows; one of its inputs is called "image".
        example: any node with a fake tensor; its fake mode is used for all new nodes.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.module = module
        self.graph = module.graph
        self.image = placeholder(self.graph, "image")
        self._fake_mode: FakeTensorMode = value(self.image).fake_mode  # type: ignore[attr-defined]
        self._meta: dict[str, Any] = {"path": "", "adjoint": False}

    @contextmanager
    def origin(self, node: fx.Node, *, adjoint: bool) -> Iterator[None]:
        """Within this context new nodes are recorded as coming from where `node` came from."""
        previous = self._meta
        self._meta = {key: node.meta[key] for key in ("path", "source") if key in node.meta} | {"adjoint": adjoint}
        try:
            yield
        finally:
            self._meta = previous

    @contextmanager
    def replacing(self, node: fx.Node) -> Iterator[None]:
        """Within this context new nodes stand before `node` and are recorded as coming from where it came from."""
        with self.graph.inserting_before(node), self.origin(node, adjoint=node.meta.get("adjoint", False)):
            yield

    def call(self, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call; arguments are nodes, numbers, or lists of them."""
        node = self.graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = fx.node.map_arg((args, kwargs), lambda argument: argument.meta["val"])
        # Without the Python dispatcher some C++ kernels (constant_pad_nd) would fix the batch at the example's.
        with self._fake_mode, enable_python_dispatcher(), torch.no_grad():
            node.meta = {**self._meta, "val": target(*fake_args, **fake_kwargs)}
        return node

    def constant(self, preferred: str, data: Tensor) -> fx.Node:
        """A constant stored in the module under the path `preferred` (or a path like it that is free)."""
        node = self.graph.get_attr(place(self.module, preferred, data))
        node.meta = {**self._meta, "val": self._fake_mode.from_tensor(data.detach(), static_shapes=True)}
        return node

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all users of `old` use `new`, and remove `old`."""
        old.replace_all_uses_with(new)
        self.graph.erase_node(old)

    def reshape(self, node: fx.Node, sizes: Sequence[int]) -> fx.Node:
        """`node` in another shape; at most one size is -1."""
        if list(sizes) == shape(node):
            return node
        return self.call(torch.ops.aten.reshape.default, node, list(sizes))
