"""Attention in one op becomes matrix products and a softmax."""

from __future__ import annotations

import math

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, parameter, static_shape, value
from sptrace.compiler.graph.facts import facts
from sptrace.errors import UnsupportedError

aten = torch.ops.aten


def expand_attention(module: fx.GraphModule) -> int:
    """Write scaled_dot_product_attention out; returns how many.

    Before:  y = scaled_dot_product_attention(q, k, v, mask)
    After:   y = matmul(softmax(matmul(q / sqrt(d), transpose(k)) + mask, -1), v)

    1. a mask of booleans, and is_causal, become 0 where True and -inf where False
    2. with enable_gqa keys and values are repeated for the queries that share them
    3. an active dropout is refused
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target == aten.scaled_dot_product_attention.default:
            with builder.replacing(node):
                builder.replace(node, _expanded(builder, node, *node.args, **node.kwargs))
            count += 1
    return count


def _expanded(
    builder: GraphBuilder,
    node: fx.Node,
    query: fx.Node,
    key: fx.Node,
    values: fx.Node,
    mask: fx.Node | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> fx.Node:
    if dropout:
        where = facts(node).source
        raise UnsupportedError(f"attention with an active dropout ({where}): call .eval() on the network")
    if enable_gqa:
        repeats = static_shape(query, [-3])[0] // static_shape(key, [-3])[0]
        key, values = (
            builder.call(aten.repeat_interleave.self_int, each, repeats, -3) for each in (key, values)
        )
    factor = 1 / math.sqrt(static_shape(query, [-1])[0]) if scale is None else scale
    scaled = query if factor == 1 else builder.call(aten.mul.Tensor, query, factor)
    logits = builder.call(aten.matmul.default, scaled, builder.call(aten.transpose.int, key, -2, -1))
    if is_causal:
        queries, keys = static_shape(logits, [-2, -1])
        mask = builder.constant("attention.causal", torch.ones(queries, keys, dtype=torch.bool).tril())
    added = None if mask is None else _added(builder, node, mask)
    if added is not None:
        logits = builder.call(aten.add.Tensor, logits, added)
    return builder.call(aten.matmul.default, builder.call(aten.softmax.int, logits, -1), values)


def _added(builder: GraphBuilder, node: fx.Node, mask: fx.Node) -> fx.Node | None:
    """A mask as numbers to be added to the logits; None if it hides nothing."""
    if value(mask).dtype != torch.bool:
        return mask
    if mask.target == aten.expand.default:
        mask = mask.args[0]  # type: ignore[assignment]  # addition broadcasts
    if mask.op != "get_attr":
        where = facts(node).source
        raise UnsupportedError(
            f"attention with a mask computed from the image ({where}): add numbers instead"
        )
    allowed = parameter(builder.module, mask)
    if allowed.all():
        return None
    return builder.constant("attention.mask", torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf))
