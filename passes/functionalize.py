"""In-place ops become functional: afterwards no node changes a value that another node has made."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder


def functionalize(module: fx.GraphModule) -> int:
    """Replace every in-place op by its functional form; returns how many.

    Before:  y = relu_(x); z = add(x, 1)
    After:   y = relu(x);  z = add(y, 1)

    Declines with UnsupportedError where a *view* of the changed tensor, or a tensor of which it is a view, is read
    later: then the write would have to be carried over from one to the other.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if not (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
            continue
        changed = node.args[0]
        position = {other: index for index, other in enumerate(module.graph.nodes)}
        _refuse_aliases(node, changed, position)
        with builder.replacing(node):
            result = builder.call(_functional(node), *node.args, **node.kwargs)
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


def _refuse_aliases(node: fx.Node, changed: fx.Node, position: dict[fx.Node, int]) -> None:
    now = position[node]
    bases = [changed.args[0]] if _is_view(changed) else []
    views = [user for user in changed.users if _is_view(user) and position[user] < now]
    for alias in [*bases, *views]:
        if isinstance(alias, fx.Node) and any(position[user] > now for user in alias.users):
            raise UnsupportedError(
                _where(
                    node, f"the in-place op {node.target} changes memory that is read again as {alias.name!r}"
                )
            )


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload) or node.target._schema.is_mutable:
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _where(node: fx.Node, what: str) -> str:
    return f"{what} ({node.meta.get('source', 'source unknown')}): write the functional form in the network"
