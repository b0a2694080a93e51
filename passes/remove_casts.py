"""Conversions to the dtype and device that a tensor has already are removed, and so are checks of them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, value
from sptrace.compiler.graph.facts import facts
from sptrace.errors import UnsupportedError

aten = ops.aten

CASTS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten._to_copy.default,
    aten.type_as.default,
}


OTHERS = frozenset({torch.float16, torch.bfloat16})


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
        elif node.target in CASTS and isinstance(facts(node).first, Tensor):
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
    _refuse_other_floats(module)
    return count


def _refuse_other_floats(module: fx.GraphModule) -> None:
    """Refuse what computes with fewer digits than float32."""
    for node in module.graph.nodes:
        is_cast = node.target == aten.to.dtype and node.users and value(node).dtype in OTHERS
        if is_cast and value(node.args[0]).dtype == torch.float32:
            raise UnsupportedError(
                f"the network computes in {value(node).dtype} ({facts(node).source}): "
                "let it compute in float32 throughout"
            )
