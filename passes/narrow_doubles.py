"""What a network computes in float64 is computed in float32, as the rest of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from sptrace.compiler.graph.builder import GraphBuilder, parameter, propagate, value
from sptrace.compiler.graph.facts import facts


def narrow_doubles(module: fx.GraphModule) -> int:
    """Put float32 in place of every float64, in constants and in what ops are asked for; returns how often.

    Before:  y = softmax(to(x, float64), 1); z = to(y, float32)
    After:   y = softmax(to(x, float32), 1); z = to(y, float32), which are no casts

    Such a network is as exact as float32 is: files hold one type, and verification compares with the network as it was.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if not any(_is_double(given) for given in tree_leaves(facts(node).values)) and not count:
            continue
        if node.op == "get_attr" and _is_double(value(node)):
            with builder.replacing(node):
                builder.replace(
                    node, builder.constant(f"{node.target}.float", parameter(module, node).float())
                )
            count += 1
        elif node.op == "call_function":
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _narrowed)
            propagate(node)
            count += 1
    return count


def _is_double(given: object) -> bool:
    return isinstance(given, Tensor) and given.dtype == torch.float64


def _narrowed(argument: Any) -> Any:
    return torch.float32 if argument is torch.float64 else argument
