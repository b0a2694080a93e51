"""What a node gives where no number of the image is read: computed for two batch sizes, as `graph.builder` has it."""

from __future__ import annotations

import operator
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from sptrace.compiler.graph.builder import parameter
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.sizes import BATCHES


def at_batches(module: fx.GraphModule, node: fx.Node) -> tuple[Any, ...] | None:
    """The node's value for each of `BATCHES`; None if it depends on the image, on chance, or is changed in place."""
    known: dict[fx.Node, tuple[Any, ...]] = {}
    waiting = [node]
    while waiting:
        now = waiting[-1]
        later = [each for each in now.all_input_nodes if each not in known and not _is_number(each)]
        if now in known or not (later or _is_computable(now)):
            if now not in known:
                return None
            waiting.pop()
        elif later:
            if not _is_computable(now):
                return None
            waiting.extend(later)
        else:
            known[now] = _values(module, now, known)
            waiting.pop()
    return known[node]


def _is_number(node: fx.Node) -> bool:
    return isinstance(facts(node).first, int | float | bool)


def _is_computable(node: fx.Node) -> bool:
    if node.op == "get_attr" or _is_number(node) or node.target is operator.getitem:
        return True
    target = node.target
    return (
        isinstance(target, OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


def _values(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, tuple[Any, ...]]) -> tuple[Any, ...]:
    if _is_number(node):
        return tuple(facts(node).values)
    if node.op == "get_attr":
        return (parameter(module, node),) * len(BATCHES)
    results = []
    for index in range(len(BATCHES)):
        pick = partial(_pick, index, known)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), pick)
        with torch.no_grad():
            results.append(node.target(*args, **kwargs))  # type: ignore[operator]
    return tuple(results)


def _pick(index: int, known: dict[fx.Node, tuple[Any, ...]], node: fx.Node) -> Any:
    return facts(node).values[index] if _is_number(node) else known[node][index]


def constant(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The node's value if it is a tensor that is the same whatever the batch."""
    values = at_batches(module, node)
    if values is None or not all(isinstance(value, Tensor) for value in values):
        return None
    first, second = values
    same = first.shape == second.shape and torch.equal(first, second)
    return first if same else None
