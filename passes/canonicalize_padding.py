"""Padding with a number becomes `constant_pad_nd`, the one form that the rules and the emitter know."""

from __future__ import annotations

from torch import fx, ops

from sptrace.graph import GraphBuilder

aten = ops.aten


def canonicalize_padding(module: fx.GraphModule) -> int:
    """Rewrite padding ops; returns how many.

    1. pad(x, widths), mode "constant", all widths 0  ->  nothing
    2. pad(x, widths), mode "constant"                ->  constant_pad_nd(x, widths, number)
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target != aten.pad.default:
            continue
        x, widths, mode, number = (*node.args, *("constant", None)[len(node.args) - 2 :])
        if mode != "constant":
            continue
        with builder.replacing(node):
            padded = builder.call(aten.constant_pad_nd.default, x, widths, number or 0.0) if any(widths) else x
            builder.replace(node, padded)
        count += 1
    return count
