"""Conversions to the dtype and device that a tensor has already are removed, and so are checks of them."""

from __future__ import annotations

from torch import Tensor, fx, ops

from sptrace.graph import GraphBuilder, value

aten = ops.aten

CASTS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
}


def remove_casts(module: fx.GraphModule) -> int:
    """Remove casts that change nothing, and assertions; returns how many. Other casts become to(x, dtype).

    Before:  _assert_tensor_metadata(x); y = type_as(x, z); u = to(m, dtype_layout...)
    After:   y = x;                                         u = to(m, float32)
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target == aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target in CASTS and isinstance(node.meta["values"][0], Tensor):
            x = node.args[0]
            if value(x).dtype == value(node).dtype:
                builder.replace(node, x)
            elif node.target != aten.to.dtype:
                with builder.replacing(node):
                    builder.replace(node, builder.call(aten.to.dtype, x, value(node).dtype))
            else:
                continue
        else:
            continue
        count += 1
    return count
