"""Arithmetic broadcasts by itself."""

from __future__ import annotations

import torch
from torch import fx

from sptrace.compiler.graph.builder import shape

aten = torch.ops.aten

ARITHMETIC = {aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor}


def drop_expansions(module: fx.GraphModule) -> int:
    """Let arithmetic read what an expansion copies; returns how many operands that were.

    Before:  y = add(x, expand(m, [-1, 96, 56, 56])), m of shape [N, 96, 1, 1]
    After:   y = add(x, m)
    """
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in ARITHMETIC or len(node.all_input_nodes) != 2:
            continue
        for index, operand in enumerate(node.args[:2]):
            other = node.args[1 - index]
            if operand.target == aten.expand.default and shape(other) == shape(node):
                node.update_arg(index, operand.args[0])
                count += 1
                break
    module.graph.eliminate_dead_code()
    return count
