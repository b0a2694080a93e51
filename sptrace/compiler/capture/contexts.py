"""Regions that torch.export keeps apart, because a context manager surrounds them, become part of the graph."""

from __future__ import annotations

import operator

import torch
from torch import fx

from sptrace.errors import UnsupportedError

AUTOCAST = torch.ops.higher_order.wrap_with_autocast
GRAD_MODE = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline_regions(module: fx.GraphModule) -> None:
    """Copy the bodies of autocast and no_grad regions to where they are called.

    A network in float32 switches autocast off, which changes nothing; what leaves a no_grad region is detached.

    Raises:
        UnsupportedError: autocast is switched on, so the region computes with fewer digits.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in (AUTOCAST, GRAD_MODE):
            continue
        if node.target is AUTOCAST:
            _device, _dtype, enabled, _cache, body, *inputs = node.args
            if enabled:
                raise UnsupportedError("the network switches autocast on: compile it in float32 throughout")
        else:
            enabled, body, *inputs = node.args
        results = _inline(module, node, getattr(module, str(body.target)), inputs)
        if node.target is GRAD_MODE and not enabled:
            results = _detached(graph, node, results)
        for user in list(node.users):
            assert user.target is operator.getitem, f"{user} reads {node} as a whole"
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(node)
        if not body.users:
            graph.erase_node(body)


def _inline(
    module: fx.GraphModule, call: fx.Node, body: fx.GraphModule, inputs: list[fx.Node]
) -> list[fx.Node]:
    """What the call gives, computed before it."""
    inline_regions(body)
    placeholders = [node for node in body.graph.nodes if node.op == "placeholder"]
    with module.graph.inserting_before(call):
        results = module.graph.graph_copy(body.graph, dict(zip(placeholders, inputs, strict=True)))
    assert isinstance(results, tuple | list)
    return list(results)


def _detached(graph: fx.Graph, call: fx.Node, results: list[fx.Node]) -> list[fx.Node]:
    detached = []
    with graph.inserting_before(call):
        for result in results:
            detached.append(graph.call_function(torch.ops.aten.detach.default, (result,)))
            detached[-1].meta = dict(result.meta)
    return detached
