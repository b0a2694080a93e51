"""What is computed twice is computed once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import fx


def share_common_subexpressions(module: fx.GraphModule) -> int:
    """Let nodes that call the same op with the same arguments share the first one; returns how many were removed.

    Before:  a = mul(z, 2); b = mul(z, 2); c = add(a, b)
    After:   a = mul(z, 2); c = add(a, a)

    All ops are functional by now (pass `functionalize`), so equal calls have equal values.
    """
    seen: dict[Hashable, fx.Node] = {}
    count = 0
    for node in list(module.graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        key = (node.op, node.target, _frozen(node.args), _frozen(node.kwargs))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            module.graph.erase_node(node)
            count += 1
    return count


def _frozen(argument: Any) -> Hashable:
    """A hashable twin; numbers keep their type, since 1 and 1.0 and True give tensors of different dtypes."""
    if isinstance(argument, list | tuple):
        return tuple(_frozen(item) for item in argument)
    if isinstance(argument, dict):
        return tuple((key, _frozen(item)) for key, item in argument.items())
    return argument if isinstance(argument, fx.Node) else (type(argument), argument)
