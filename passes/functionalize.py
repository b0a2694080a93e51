"""In-place ops become functional: afterwards no node changes a value that another node has made."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder, Target, shape, value
from sptrace.passes.canonicalize_shapes import RESHAPES
from sptrace.sizes import BatchSize

aten = torch.ops.aten


VIEWS: dict[Target, Callable[..., fx.Node | None]] = {}
"""For every op whose result is a part of its input's memory: the input with another part in that place.

Called with the builder, the input, the new part, and the op's other arguments; None where that is not covered.
"""


def functionalize(module: fx.GraphModule) -> int:
    """Replace every in-place op by its functional form; returns how many.

    1. y = relu_(x); z = add(x, 1)                            ->  y = relu(x); z = add(y, 1)
    2. p = slice(x, 2, 1, 9); copy_(p, q); y = softmax(x, 1)  ->  p = slice(x, 2, 1, 9); u = copy(p, q);
       (slices, layers, transposes and reshapes of x)             y = softmax(cat([x[:, :, :1], u, x[:, :, 9:]], 2), 1)

    Declines with UnsupportedError where

    1. yet another name of the changed memory (another view of the tensor) is read later: then the write would have to
       be carried over to that one;
    2. the network overwrites a constant of its own: then each call would explain another network.
    """
    builder = GraphBuilder(module)
    memory = {node: memory_of(node) for node in module.graph.nodes}
    count = 0
    for node in list(module.graph.nodes):
        if not (isinstance(node.target, OpOverload) and node.target._schema.is_mutable):
            continue
        changed = node.args[0]
        position = {other: index for index, other in enumerate(module.graph.nodes)}
        now = position[node]
        later = {other for other in position if any(position[user] > now for user in other.users)}
        with builder.replacing(node):
            new = {changed: builder.call(_functional(node), *node.args, **node.kwargs)}
            _carry_over(builder, changed, new, memory, later)
        _refuse_aliases(node, changed, memory, position, new.keys())
        memory |= {other: set() for other in module.graph.nodes if other not in memory}
        for old, result in new.items():
            memory[result] = memory[node]
            old.replace_all_uses_with(
                result, delete_user_cb=lambda user, now=now, at=position: at.get(user, -1) > now
            )
        builder.replace(node, new[changed])
        count += 1
    return count


def _carry_over(
    builder: GraphBuilder,
    changed: fx.Node,
    new: dict[fx.Node, fx.Node],
    memory: dict[fx.Node, set[int]],
    later: set[fx.Node],
) -> None:
    """If `changed` is a view, write it back to what it is a view of, and so on, as far as that is read later."""
    part, bases = changed, []
    while part.target in VIEWS and memory[part] & memory[part.all_input_nodes[0]]:
        part = part.all_input_nodes[0]
        bases.append(part)
    while bases and bases[-1] not in later:
        bases.pop()
    part = changed
    for base in bases:
        whole = VIEWS[part.target](builder, base, new[part], *part.args[1:])  # type: ignore[index]
        if whole is None:
            return
        new[base], part = whole, base


def _in_slice(
    builder: GraphBuilder,
    x: fx.Node,
    part: fx.Node,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> fx.Node | None:
    if shape(part) == shape(x):
        return part
    size = shape(x)[dim]
    if step != 1 or isinstance(size, BatchSize):
        return None
    first, last, _ = slice(start, end).indices(size)
    around = [(0, first), (first, last), (last, size)]
    pieces = [
        part if stretch == (first, last) else builder.call(aten.slice.Tensor, x, dim, *stretch)
        for stretch in around
        if stretch[0] < stretch[1]
    ]
    return builder.call(aten.cat.default, pieces, dim)


def _in_layer(builder: GraphBuilder, x: fx.Node, part: fx.Node, dim: int, index: int) -> fx.Node | None:
    size, dim = shape(x)[dim], dim % value(x).ndim
    if isinstance(size, BatchSize):
        return None
    index %= size
    return _in_slice(builder, x, builder.call(aten.unsqueeze.default, part, dim), dim, index, index + 1)


def _in_transpose(builder: GraphBuilder, x: fx.Node, part: fx.Node, first: int, second: int) -> fx.Node:
    return builder.call(aten.transpose.int, part, first, second)


def _in_permutation(builder: GraphBuilder, x: fx.Node, part: fx.Node, dims: Sequence[int]) -> fx.Node:
    order = [dim % len(dims) for dim in dims]
    return builder.call(aten.permute.default, part, [order.index(dim) for dim in range(len(order))])


def _in_shape(builder: GraphBuilder, x: fx.Node, part: fx.Node, *options: object) -> fx.Node:
    return builder.reshape(part, shape(x))


VIEWS |= {
    aten.slice.Tensor: _in_slice,
    aten.select.int: _in_layer,
    aten.transpose.int: _in_transpose,
    aten.permute.default: _in_permutation,
    **dict.fromkeys(RESHAPES, _in_shape),
}


def _functional(node: fx.Node) -> OpOverload:
    assert isinstance(node.target, OpOverload)
    name = node.target._schema.name.removeprefix("aten::").removesuffix("_")
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or node.target._overloadname not in packet.overloads():
        raise UnsupportedError(_where(node, f"the in-place op {node.target} has no functional form"))
    overload = getattr(packet, node.target._overloadname)
    assert isinstance(overload, OpOverload)
    return overload


def memory_of(node: fx.Node) -> set[int]:
    """The storages of a node's tensors. Running without data, views share their storage as they will with data."""
    first = node.meta["values"][0] if "values" in node.meta else None
    tensors = first if isinstance(first, tuple | list) else [first]
    return {tensor.untyped_storage()._cdata for tensor in tensors if isinstance(tensor, Tensor)}


def _refuse_aliases(
    node: fx.Node,
    changed: fx.Node,
    memory: dict[fx.Node, set[int]],
    position: dict[fx.Node, int],
    written: Container[fx.Node],
) -> None:
    now = position[node]
    for alias in position:
        if alias is node or not memory[alias] & memory[changed]:
            continue
        if alias.op == "get_attr" and not alias.meta.get("filled"):
            raise UnsupportedError(
                _where(node, f"the in-place op {node.target} overwrites the network's own {alias.target!r}")
            )
        read_later = any(position.get(user, -1) > now for user in alias.users)
        if alias not in written and position[alias] < now and read_later:
            raise UnsupportedError(
                _where(
                    node, f"the in-place op {node.target} changes memory that is read again as {alias.name!r}"
                )
            )


def _where(node: fx.Node, what: str) -> str:
    return f"{what} ({node.meta.get('source', 'source unknown')}): write the functional form in the network"
