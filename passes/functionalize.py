"""In-place ops become functional: afterwards no node changes a value that another node has made."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sptrace.compiler.graph.builder import GraphBuilder, parameter, shape, value
from sptrace.compiler.graph.constants import constant
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.views import put_back
from sptrace.errors import UnsupportedError
from sptrace.passes.canonicalize_splits import canonicalize_splits

aten = torch.ops.aten


OVERWRITING = frozenset({aten.copy.default, aten.fill.Scalar, aten.fill.Tensor})
"""Of what they write to, they read the shape alone."""


def functionalize(module: fx.GraphModule) -> int:
    """Replace every in-place op by its functional form; returns how many.

    1. y = relu_(x); z = add(x, 1)                            ->  y = relu(x); z = add(y, 1)
    2. p = slice(x, 2, 1, 9); copy_(p, q); y = softmax(x, 1)  ->  p = slice(x, 2, 1, 9); u = copy(p, q);
       (any view of `graph.views`)                              y = softmax(cat([x[:, :, :1], u, x[:, :, 9:]], 2), 1)
    3. v = transpose(x, 2, 3); relu_(x); y = mul(v, 2)        ->  u = relu(x); v = transpose(u, 2, 3); y = mul(v, 2)
    4. z = mul(x, 2, out=y)                                   ->  z = mul(x, 2)

    What forward writes into the network's own memory (counters, averages, queues) is dropped where the output does not
    depend on it, and where it changes nothing.

    Declines with UnsupportedError where

    1. memory is changed through a view that cannot be put back, and read again under another name;
    2. the output depends on what the network has overwritten: then each call would explain another network.
    """
    if not any(_writes(node) for node in module.graph.nodes):
        return 0
    canonicalize_splits(module)
    memory = _Memory(module)
    count = 0
    for node in list(module.graph.nodes):
        if _writes(node):
            memory.write(node)
            count += 1
    memory.forget_state()
    return count


def memory_of(node: fx.Node) -> set[int]:
    """The storages of a node's tensors. Running without data, views share their storage as they will with data."""
    first = facts(node).first
    tensors = first if isinstance(first, tuple | list) else [first]
    return {tensor.untyped_storage()._cdata for tensor in tensors if isinstance(tensor, Tensor)}


def written_by(node: fx.Node) -> list[Any]:
    """The arguments that an op changes."""
    if not isinstance(node.target, OpOverload) or not node.target._schema.is_mutable:
        return []
    given = []
    for number, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            place = node.kwargs.get(argument.name) if number >= len(node.args) else node.args[number]
            if place is not None:
                given.append(place)
    return given


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable


class _Memory:
    """Which nodes are views of which, and what stands for them after each write."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module = module
        self._builder = GraphBuilder(module)
        self._storages = {node: memory_of(node) for node in module.graph.nodes}
        self._views: dict[fx.Node, tuple[fx.Node, fx.Node | None]] = {}
        """Of nodes that came after a write: the view op that they stand for, and what that is a view of now."""
        self._written: list[fx.Node] = []
        self._state: list[fx.Node] = []
        """The network's own tensors that it changes."""

    def write(self, node: fx.Node) -> None:
        """Replace an in-place op, and what is read later of the memory that it changes."""
        changed, *others = written_by(node)
        if others or not isinstance(changed, fx.Node):
            raise UnsupportedError(_where(node, f"the in-place op {node.target} changes several tensors"))
        position = {other: index for index, other in enumerate(self._module.graph.nodes)}
        now = position[node]

        def is_later(user: fx.Node) -> bool:
            return position.get(user, -1) > now

        before = [
            other
            for other in position
            if position[other] < now and self._storages.get(other, set()) & self._storages[changed]
        ]
        live = [
            other
            for other in before
            if any(position[user] > now and user.target is not aten.sym_size.int for user in other.users)
        ]
        with self._builder.replacing(node):
            new = {changed: _functional(self._builder, node, changed)}
            self._put_back(node, changed, new, live)
            for other in live:
                self._show(other, new)
        for old, result in new.items():
            if result is not old:
                self._storages[result] = self._storages[node]
                template, _ = self._view(old)
                base = self._base(old)
                self._views[result] = (template, new.get(base, base) if base is not None else None)
        for old, result in new.items():
            if result is not old:
                old.replace_all_uses_with(result, delete_user_cb=is_later)
        self._builder.replace(node, new[changed])
        self._written.extend(result for old, result in new.items() if result is not old)

    def forget_state(self) -> None:
        """Remove what is written and not read, and refuse a network whose output depends on what it changes itself."""
        for node in reversed(self._written):
            if not node.users:
                self._module.graph.erase_node(node)
        reached: set[fx.Node] = set()
        waiting = [self._module.graph.output_node()]
        while waiting:
            node = waiting.pop()
            if node not in reached:
                reached.add(node)
                read = [node.args[1]] if node.target in OVERWRITING else node.all_input_nodes
                waiting.extend(each for each in read if isinstance(each, fx.Node))
        for state in self._state:
            if state in reached:
                raise UnsupportedError(
                    f"the network's answer depends on its {state.target!r}, which forward changes, so that each call "
                    "answers differently: let it stay as it is in eval mode"
                )

    def _view(self, node: fx.Node) -> tuple[fx.Node, fx.Node | None]:
        """The call that a node is, or stands for, and the first argument of that."""
        if node in self._views:
            return self._views[node]
        base = node.args[0] if node.op == "call_function" and node.args else None
        shares = isinstance(base, fx.Node) and self._storages.get(node, set()) & self._storages.get(
            base, set()
        )
        return node, base if shares and isinstance(base, fx.Node) else None

    def _base(self, node: fx.Node) -> fx.Node | None:
        return self._view(node)[1]

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        """The node, what it is a view of, and so on."""
        chain, base = [node], self._base(node)
        while base is not None:
            chain.append(base)
            base = self._base(base)
        return chain

    def _put_back(
        self, node: fx.Node, changed: fx.Node, new: dict[fx.Node, fx.Node], live: Iterable[fx.Node]
    ) -> None:
        """Write what has changed into what it is a view of, as far as others show that."""
        chain = self._chain(changed)
        top = 0
        for other in live:
            common = [index for index, base in enumerate(chain) if base in self._chain(other)]
            if not common:
                raise UnsupportedError(_where(node, _read_again(node, other)))
            top = max(top, common[0])
        root = chain[-1]
        own = root.op == "get_attr" and not facts(root).is_filled
        for part, base in pairwise(chain if own else chain[: top + 1]):
            view = self._view(part)[0]
            detached = (
                own and view.target is aten.detach.default
            )  # of constants autograd knows nothing anyway
            whole = new[part] if detached else put_back(self._builder, view, base, new[part])
            if whole is None:
                raise UnsupportedError(_where(node, _read_again(node, base)))
            new[base] = whole
        if own:
            known = constant(self._module, new[root])
            if known is not None and torch.equal(known, parameter(self._module, root)):
                new[root] = root
            elif root not in self._state:
                self._state.append(root)

    def _show(self, node: fx.Node, new: dict[fx.Node, fx.Node]) -> fx.Node:
        """What a node shows of the changed memory."""
        if node not in new:
            template, base = self._view(node)
            assert base is not None
            new[node] = self._builder.call(
                template.target,  # type: ignore[arg-type]
                self._show(base, new),
                *template.args[1:],
                **template.kwargs,
            )
        return new[node]


def _functional(builder: GraphBuilder, node: fx.Node, changed: fx.Node) -> fx.Node:
    assert isinstance(node.target, OpOverload)
    if node.target is aten.zero_.default:
        return builder.call(aten.fill.Scalar, changed, 0)
    schema = node.target._schema
    out = next((argument.name for argument in schema.arguments if argument.is_out), None)
    name = schema.name.removeprefix("aten::").removesuffix("_")
    overload = _overload(name, node.target)
    if overload is None:
        raise UnsupportedError(_where(node, f"the in-place op {node.target} has no functional form"))
    kwargs = {key: argument for key, argument in node.kwargs.items() if key != out}
    result = builder.call(overload, *node.args, **kwargs)
    if out is not None and (shape(result) != shape(changed) or value(result).dtype != value(changed).dtype):
        raise UnsupportedError(
            _where(node, f"{node.target} gives its result another shape or type than out has")
        )
    return result


def _overload(name: str, target: OpOverload) -> OpOverload | None:
    """The functional op with the same arguments, but for `out`."""
    packet = getattr(aten, name, None)
    if packet is None:
        return None
    if target._overloadname in packet.overloads():
        same = getattr(packet, target._overloadname)
        if isinstance(same, OpOverload) and not same._schema.is_mutable:
            return same
    wanted = [str(argument.type) for argument in target._schema.arguments if not argument.is_out]
    for overload in (getattr(packet, each) for each in packet.overloads()):
        given = [str(argument.type) for argument in overload._schema.arguments]
        if isinstance(overload, OpOverload) and not overload._schema.is_mutable and given == wanted:
            return overload
    return None


def _read_again(node: fx.Node, other: fx.Node) -> str:
    return f"the in-place op {node.target} changes memory that is read again as {other.name!r}"


def _where(node: fx.Node, what: str) -> str:
    return f"{what} ({facts(node).source}): write the functional form in the network"
