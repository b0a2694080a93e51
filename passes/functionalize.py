"""In-place ops become functional: afterwards no node changes a value that another node has made."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder


def functionalize(module: fx.GraphModule) -> int:
    """Replace every in-place op by its functional form; returns how many.

    Before:  y = relu_(x); z = add(x, 1)
    After:   y = relu(x);  z = add(y, 1)

    Declines with UnsupportedError where

    1. another name of the changed memory (a view of the tensor, the tensor of which it is a view, another view of
       that) is read later: then the write would have to be carried over from one to the other;
    2. the network overwrites a constant of its own: then each call would explain another network.
    """
    builder = GraphBuilder(module)
    memory = {node: _memory(node) for node in module.graph.nodes}
    count = 0
    for node in list(module.graph.nodes):
        if not (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
            continue
        changed = node.args[0]
        position = {other: index for index, other in enumerate(module.graph.nodes)}
        _refuse_aliases(node, changed, memory, position)
        with builder.replacing(node):
            result = builder.call(_functional(node), *node.args, **node.kwargs)
        memory[result] = memory[node]
        changed.replace_all_uses_with(
            result, delete_user_cb=lambda user, now=position[node], at=position: at.get(user, -1) > now
        )
        builder.replace(node, result)
        count += 1
    return count


def _functional(node: fx.Node) -> OpOverload:
    assert isinstance(node.target, OpOverload)
    name = node.target._schema.name.removeprefix("aten::").removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or node.target._overloadname not in packet.overloads():
        raise UnsupportedError(_where(node, f"the in-place op {node.target} has no functional form"))
    overload = getattr(packet, node.target._overloadname)
    assert isinstance(overload, OpOverload)
    return overload


def _memory(node: fx.Node) -> set[int]:
    """The storages of a node's tensors. Running without data, views share their storage as they will with data."""
    first = node.meta["values"][0] if "values" in node.meta else None
    tensors = first if isinstance(first, tuple | list) else [first]
    return {tensor.untyped_storage()._cdata for tensor in tensors if isinstance(tensor, Tensor)}


def _refuse_aliases(
    node: fx.Node, changed: fx.Node, memory: dict[fx.Node, set[int]], position: dict[fx.Node, int]
) -> None:
    now = position[node]
    for alias in position:
        if alias is node or not memory[alias] & memory[changed]:
            continue
        if alias.op == "get_attr":
            raise UnsupportedError(
                _where(node, f"the in-place op {node.target} overwrites the network's own {alias.target!r}")
            )
        read_later = any(position[user] > now for user in alias.users)
        if alias is not changed and position[alias] < now and read_later:
            raise UnsupportedError(
                _where(
                    node, f"the in-place op {node.target} changes memory that is read again as {alias.name!r}"
                )
            )


def _where(node: fx.Node, what: str) -> str:
    return f"{what} ({node.meta.get('source', 'source unknown')}): write the functional form in the network"
