"""What does not depend on the image is computed once, now, and stored in the file."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sptrace.graph import GraphBuilder, parameter

Value = Any


def fold_constants(module: fx.GraphModule) -> int:
    """Replace tensors that are computed from constants alone by their values; returns how many ops that took.

    Before:  i = arange(49); t = index(table, [i]); y = add(x, t)
    After:   t = get_attr("folded"); y = add(x, t)

    It runs the constant part of the network in its own order, so that a constant may also be made in place (a mask
    filled piece by piece); a reader gets the value of its own moment. Declines where

    1. a size depends on the batch: there is no one value;
    2. the op is random, or writes into the network's own parameters.
    """
    known: dict[fx.Node, Value] = {}
    own = {
        parameter(module, node).untyped_storage().data_ptr()
        for node in module.graph.nodes
        if node.op == "get_attr" and isinstance(node.meta["values"][0], Tensor)
    }
    builder = GraphBuilder(module)
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            known[node] = parameter(module, node)
        elif node.op == "call_function" and _is_constant(node, known, own):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
            with torch.no_grad():
                known[node] = node.target(*args, **kwargs)
        else:
            _store(builder, node, known)
    folded = [node for node in known if node.op == "call_function"]
    for node in reversed(folded):
        if not node.users:
            module.graph.erase_node(node)
    return len(folded)


def _is_constant(node: fx.Node, known: dict[fx.Node, Value], own: set[int]) -> bool:
    if not all(argument in known for argument in node.all_input_nodes):
        return False
    if not isinstance(node.target, OpOverload):
        return True
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    changed = known[node.args[0]] if node.target._schema.is_mutable and isinstance(node.args[0], fx.Node) else None
    return not isinstance(changed, Tensor) or changed.untyped_storage().data_ptr() not in own


def _store(builder: GraphBuilder, reader: fx.Node, known: dict[fx.Node, Value]) -> None:
    """Let `reader` read stored constants where it read computed ones."""
    for argument in reader.all_input_nodes:
        if argument.op == "call_function" and isinstance(known.get(argument), Tensor):
            with builder.replacing(reader):
                name = f"{argument.meta['path']}.folded" if argument.meta["path"] else "folded"
                constant = builder.constant(name, known[argument].clone())
            reader.replace_input_with(argument, constant)
