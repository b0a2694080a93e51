"""Tokens become maps, and maps tokens, by one permutation of four dimensions that runtimes know."""

from __future__ import annotations

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, permutation, shape

aten = ops.aten

TO_MAP, TO_TOKENS, SWAP = [0, 3, 1, 2], [0, 2, 3, 1], [0, 2, 1]


def simplify_layouts(module: fx.GraphModule) -> int:
    """Rewrite permutations beside reshapes; returns how many.

    With tokens of shape [N, H W, C] and maps of shape [N, C, H, W],

    1. reshape(permute(tokens, [0, 2, 1]), [N, C, H, W])  ->  permute(reshape(tokens, [N, H, W, C]), [0, 3, 1, 2])
    2. permute(reshape(map, [N, C, H W]), [0, 2, 1])      ->  reshape(permute(map, [0, 2, 3, 1]), [N, H W, C])
    3. permute(permute(x, first), second)                 ->  permute(x, both), or x
    4. reshape(reshape(x, other), sizes)                  ->  reshape(x, sizes), or x

    onnxruntime's convolutions take and give channels last in passing, where the permutation says so; a permutation of
    three dimensions it carries out by itself, which took a fifth of the time of a PVT's pullback.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.op == "call_function" and (replacement := _rewritten(builder, node)) is not None:
            builder.replace(node, replacement)
            count += 1
    module.graph.eliminate_dead_code()
    return count


def _rewritten(builder: GraphBuilder, node: fx.Node) -> fx.Node | None:
    order = permutation(node)
    if order is None and node.target != aten.reshape.default:
        return None
    (inner, *_) = node.args
    assert isinstance(inner, fx.Node)
    with builder.replacing(node):
        if order is None:
            return _reshaped(builder, node, inner)
        return _permuted(builder, inner, order)


def _reshaped(builder: GraphBuilder, node: fx.Node, inner: fx.Node) -> fx.Node | None:
    """Rewrites 1 and 4."""
    sizes = shape(node)
    if inner.target == aten.reshape.default and isinstance(inner.args[0], fx.Node):
        return builder.reshape(inner.args[0], sizes)
    if permutation(inner) == SWAP and len(sizes) == 4 and sizes[:2] == shape(inner)[:2]:
        batch, channels, height, width = sizes
        return builder.call(
            aten.permute.default, builder.reshape(_source(inner), [batch, height, width, channels]), TO_MAP
        )
    return None


def _permuted(builder: GraphBuilder, inner: fx.Node, order: list[int]) -> fx.Node | None:
    """Rewrites 2 and 3."""
    first = permutation(inner)
    if first is not None:
        both = [first[dim] for dim in order]
        source = _source(inner)
        return source if both == sorted(both) else builder.call(aten.permute.default, source, both)
    if order != SWAP or inner.target != aten.reshape.default:
        return None
    source = _source(inner)
    batch, channels, tokens = shape(inner)
    if len(shape(source)) != 4 or shape(source)[:2] != [batch, channels]:
        return None
    return builder.reshape(builder.call(aten.permute.default, source, TO_TOKENS), [batch, tokens, channels])


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source
