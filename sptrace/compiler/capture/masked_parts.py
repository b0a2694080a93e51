"""What a network computes for the numbers that a mask lets through, computed for all: x[x < 0] *= 0.3 is a where.

How many numbers a mask lets through depends on the picture, and no fixed graph has a place for that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

aten = torch.ops.aten

WRITES = frozenset({aten.index_put_.default, aten.index_put.default})
ROW_BY_ROW = frozenset({"linear", "layer_norm", "unsqueeze", "softmax", "select", "slice"})
"""Ops that mix no rows, where their dimension, if they have one, is not the first."""
NUMBER_BY_NUMBER = frozenset({"clone", "to", "detach", "dropout", "contiguous"})
"""Besides those that PyTorch tags as such."""
FINITE = frozenset({"add", "sub", "rsub", "mul", "neg", *NUMBER_BY_NUMBER, *ROW_BY_ROW})
"""Ops that are finite wherever their arguments are, and so may see numbers that the mask does not let through."""
OTHERWISE = 0.5
"""What other ops see in place of those: most functions have a value and a derivative there."""


def widen_masked_parts(module: fx.GraphModule) -> None:
    """Rewrite an exported graph, in place.

    Before:  t = index(x, [m]); u = mul_(t, 0.3); index_put_(y, [m], u)           m is made of the picture
    After:   t = clone(x);      u = mul_(t, 0.3); copy_(y, where(m, u, y))

    A mask of the first dimensions alone chooses rows: t = flatten(x, 0, 1), and the rows that it does not choose go
    through linear layers besides. Nothing changes where the chosen are mixed, or read by anything but a write with the
    same mask.
    """
    graph = module.graph
    for node in list(graph.nodes):
        mask = _mask(node)
        if node.target is aten.index.Tensor and mask is not None:
            part = _Part(graph, mask)
            if part.is_known():
                part.widen()


def _mask(node: fx.Node) -> fx.Node | None:
    """The only index of a call, a mask; None if it has others."""
    indices: Any = node.args[1] if len(node.args) > 1 else None
    if not isinstance(indices, Sequence) or len(indices) != 1 or not isinstance(indices[0], fx.Node):
        return None
    numbers = indices[0].meta.get("val")
    return indices[0] if isinstance(numbers, Tensor) and numbers.dtype == torch.bool else None


def _name(node: fx.Node) -> str:
    """Of an op, whether it works in place or not."""
    if not isinstance(node.target, OpOverload):
        return ""
    return node.target._schema.name.removeprefix("aten::").removesuffix("_")


@dataclass
class _Part:
    """All that is read with a mask, what is computed of it, and the writes that it ends in."""

    graph: fx.Graph
    mask: fx.Node
    read: list[fx.Node] = field(default_factory=list)
    computed: list[fx.Node] = field(default_factory=list)
    written: list[fx.Node] = field(default_factory=list)
    checks: list[fx.Node] = field(default_factory=list)

    def is_known(self) -> bool:
        """Is everything found, and all of it computed number by number or row by row?"""
        inside: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.target is aten.index.Tensor and self._is_same(_mask(node)):
                self.read.append(node)
            elif not inside.intersection(node.all_input_nodes):
                continue
            elif not isinstance(node.meta.get("val"), Tensor):
                self.checks.append(node)  # of how many there are
            elif node.target in WRITES and self._is_write(node, inside):
                self.written.append(node)
                continue
            elif self._is_apart(node, inside):
                self.computed.append(node)
            else:
                return False
            inside.add(node)
        return bool(self.written) and all(
            isinstance(node.target, OpOverload) or node.users for node in self.checks
        )

    def _is_same(self, other: fx.Node | None) -> bool:
        """Is it the mask, or made in the same way while nothing was written?"""
        if other is None or other is self.mask:
            return other is not None
        nodes = list(self.graph.nodes)
        first, last = sorted(map(nodes.index, (self.mask, other)))
        if any(
            isinstance(each.target, OpOverload) and each.target._schema.is_mutable
            for each in nodes[first:last]
        ):
            return False
        return _is_made_alike(self.mask, other)

    def _is_write(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        base, _, value, *accumulate = node.args
        if not self._is_same(_mask(node)) or value not in inside or base in inside or any(accumulate):
            return False
        given, whole, mask = (each.meta["val"] for each in (value, base, self.mask))  # type: ignore[union-attr]
        return list(given.shape[1:]) == list(whole.shape[mask.ndim :])

    def _is_apart(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        """Does each row of the result come from the same row alone?"""
        rank = node.meta["val"].ndim
        others = [each for each in node.all_input_nodes if each not in inside]
        if self._is_by_number(node):
            return all(each.meta["val"].ndim < rank or each.meta["val"].ndim == 0 for each in others)
        dim = _dimension(node)
        return (
            _name(node) in ROW_BY_ROW
            and node.args[0] in inside
            and not inside & set(others)
            and dim not in (0, -rank)
        )

    def _is_by_number(self, node: fx.Node) -> bool:
        tags = node.target.tags if isinstance(node.target, OpOverload) else ()
        functional = getattr(aten, _name(node), None)
        if functional is not None and functional.overloads():
            tags = [*tags, *getattr(functional, functional.overloads()[0]).tags]
        return torch.Tag.pointwise in tags or _name(node) in NUMBER_BY_NUMBER

    def widen(self) -> None:
        """Let it be computed for all."""
        rank = self.mask.meta["val"].ndim
        whole = all(map(self._is_by_number, self.computed)) and all(
            node.meta["val"].ndim == 1 and node.args[0].meta["val"].ndim == rank  # type: ignore[union-attr]
            for node in self.read
        )
        finite = all(_name(node) in FINITE for node in self.computed)
        for node in reversed(self.checks):
            self.graph.erase_node(node)
        for node in self.read:
            with self.graph.inserting_before(node):
                self._widen_read(node, whole, finite)
        for node in self.computed:
            node.meta["val"] = None  # whose size was the number of those chosen
        for node in self.written:
            with self.graph.inserting_before(node):
                self._widen_write(node, whole)

    def _call(self, like: fx.Node, target: OpOverload, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {**like.meta, "val": None}
        return node

    def _beside(self, node: fx.Node, rank: int) -> fx.Node:
        """The mask, with a size for every dimension of rows."""
        mask = self.mask
        for _ in range(rank - self.mask.meta["val"].ndim):
            mask = self._call(node, aten.unsqueeze.default, mask, -1)
        return mask

    def _widen_read(self, node: fx.Node, whole: bool, finite: bool) -> None:
        x: Any = node.args[0]
        numbers = x.meta["val"]
        if finite or not numbers.is_floating_point():
            x = self._call(node, aten.clone.default, x)
        else:
            x = self._call(node, aten.where.ScalarOther, self._beside(node, numbers.ndim), x, OTHERWISE)
        if not whole:
            x = self._call(node, aten.flatten.using_ints, x, 0, self.mask.meta["val"].ndim - 1)
        node.replace_all_uses_with(x)
        self.graph.erase_node(node)

    def _widen_write(self, node: fx.Node, whole: bool) -> None:
        base, _, value, *_ = node.args
        rank = base.meta["val"].ndim  # type: ignore[union-attr]
        if not whole:
            value = self._call(node, aten.reshape_as.default, value, base)
        chosen = self._call(node, aten.where.self, self._beside(node, rank), value, base)
        if node.target is aten.index_put_.default:
            node.target, node.args = aten.copy_.default, (base, chosen)
        else:
            node.replace_all_uses_with(chosen)
            self.graph.erase_node(node)


def _dimension(node: fx.Node) -> int | None:
    """The dimension that an op works along."""
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in node.target._schema.arguments]
    given: Mapping[str, Any] = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    dim: int | None = given.get("dim", 0 if "dim" in names else None)
    return dim


def _is_made_alike(first: object, second: object) -> bool:
    if isinstance(first, fx.Node) and isinstance(second, fx.Node):
        if first is second:
            return True
        return (
            first.op == second.op == "call_function"
            and first.target == second.target
            and first.kwargs == second.kwargs
            and len(first.args) == len(second.args)
            and all(map(_is_made_alike, first.args, second.args))
        )
    return type(first) is type(second) and first == second
