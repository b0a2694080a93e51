"""One linear layer that computes queries, keys and values together becomes one for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, parameter, permutation, shape, static_shape, value
from sptrace.compiler.graph.views import RESHAPES

aten = torch.ops.aten


@dataclass(frozen=True)
class Packed:
    """A linear layer whose features are split and taken apart.

    Arguments:
        linear: the layer.
        parts: into how many parts its features are split.
        chain: the rearrangements from the split to the selects, each with the place of the parts' dimension after it.
        selects: what takes one part each.
    """

    linear: fx.Node
    parts: int
    chain: list[tuple[fx.Node, int]]
    selects: list[fx.Node]


def split_packed_projections(module: fx.GraphModule) -> int:
    """Replace linear layers of which every reader takes one part of the features; returns how many.

    Before:  qkv = linear(x, w, b).reshape(n, t, 3, h, d).permute(2, 0, 3, 1, 4); v = qkv.select(0, 2) ...
    After:   v = linear(x, w[2], b[2]).reshape(n, t, h, d).permute(0, 2, 1, 3) ...

    The values stay. But where only v carries a cotangent, two thirds of the pullback's product were with zeros.
    """
    builder = GraphBuilder(module)
    found = [packed for node in module.graph.nodes for packed in _packed(node)]
    for packed in found:
        for select in packed.selects:
            with builder.replacing(select):
                builder.replace(select, _part(builder, packed, select))
    module.graph.eliminate_dead_code()
    return len(found)


def _packed(linear: fx.Node) -> Iterator[Packed]:
    if linear.target != aten.linear.default or len(linear.users) != 1:
        return
    (node,) = linear.users
    axis = value(linear).ndim - 1
    if (
        node.target not in RESHAPES
        or shape(node)[:axis] != shape(linear)[:-1]
        or value(node).ndim <= axis + 1
    ):
        return
    (parts,) = static_shape(node, [axis])
    chain = [(node, axis)]
    while parts > 1:
        if all(user.target == aten.select.int and _dim(user) == axis for user in node.users):
            yield Packed(linear, parts, chain, list(node.users))
            return
        if len(node.users) != 1:
            return
        (user,) = node.users
        moved = _moved(user, axis)
        if moved is None:
            return
        node, axis = user, moved
        chain.append((node, axis))


def _dim(select: fx.Node) -> int:
    return int(select.args[1]) % value(select.args[0]).ndim  # type: ignore[arg-type]


def _moved(node: fx.Node, axis: int) -> int | None:
    """Where a dimension is after a rearrangement that keeps it whole; None after anything else."""
    order = permutation(node)
    if order is not None:
        return order.index(axis)
    if node.target not in RESHAPES:
        return None
    before, after = shape(node.all_input_nodes[0]), shape(node)
    if [size for size in before if size != 1] != [size for size in after if size != 1]:
        return None
    earlier = sum(size != 1 for size in before[:axis])
    return [place for place, size in enumerate(after) if size != 1][earlier]


def _part(builder: GraphBuilder, packed: Packed, select: fx.Node) -> fx.Node:
    """The layer of one part, and the same rearrangements without the parts' dimension."""
    x, *tensors = packed.linear.args
    index = int(select.args[2]) % packed.parts  # type: ignore[arg-type]
    with builder.origin(packed.linear, adjoint=False):
        own = [
            _rows(builder, tensor, index, packed.parts) for tensor in tensors if isinstance(tensor, fx.Node)
        ]
        result = builder.call(aten.linear.default, x, *own)
    for node, axis in packed.chain:
        if node.target in RESHAPES:
            sizes = shape(node)
            result = builder.reshape(result, sizes[:axis] + sizes[axis + 1 :])
            continue
        order = permutation(node)
        assert order is not None
        left = order[axis]
        kept = [dim - (dim > left) for dim in order if dim != left]
        sizes = [shape(result)[dim] for dim in kept]
        wide = [dim for dim in kept if shape(result)[dim] != 1]
        # A permutation that moves nothing but dimensions of size 1 moves no number.
        moves = wide != sorted(wide)
        result = builder.call(aten.permute.default, result, kept) if moves else builder.reshape(result, sizes)
    return result


def _rows(builder: GraphBuilder, tensor: fx.Node, index: int, parts: int) -> fx.Node:
    """One part of a weight or bias."""
    rows = static_shape(tensor, [0])[0] // parts
    if tensor.op != "get_attr":
        return builder.call(aten.slice.Tensor, tensor, 0, index * rows, (index + 1) * rows)
    data = parameter(builder.module, tensor)[index * rows : (index + 1) * rows]
    return builder.constant(f"{tensor.target}_{index}", data.clone())
