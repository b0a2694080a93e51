"""Numbers that a gate multiplies the cotangent by become part of the weights that it meets next."""

from __future__ import annotations

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder

aten = torch.ops.aten


def absorb_cotangent_factors(module: fx.GraphModule) -> int:
    """Multiply constant weights in place of the cotangent; returns how many factors are gone.

    Before:  convolution(mul(u, 0.5), w), matmul(mul(u, 0.5), w), the product read by nothing else
    After:   convolution(u, mul(w, 0.5)), matmul(u, mul(w, 0.5))

    The weights are scaled in the graph, so that the file has one copy of them; runtimes do that once, at loading.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in (aten.convolution.default, aten.matmul.default):
            continue
        product, weight = node.args[:2]
        if (
            product.target != aten.mul.Tensor
            or len(product.users) != 1
            or not isinstance(product.args[1], int | float)
            or not _is_constant(weight)
        ):
            continue
        with builder.replacing(node):
            scaled = builder.call(aten.mul.Tensor, weight, product.args[1])
        node.args = (product.args[0], scaled, *node.args[2:])
        count += 1
    module.graph.eliminate_dead_code()
    return count


def _is_constant(node: fx.Node) -> bool:
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"
