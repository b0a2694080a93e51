"""What torch.export gives, in fewer kinds of ops and without what is only there for Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator

from sptrace.compiler.capture.contexts import inline_regions
from sptrace.compiler.capture.masked_parts import widen_masked_parts
from sptrace.compiler.graph.builder import IN_ANOTHER_SHAPE
from sptrace.errors import UnsupportedError

aten = torch.ops.aten

CHECKS = frozenset(
    {
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten._assert_async.default,
        aten._assert_tensor_metadata.default,
        aten.sym_constrain_range_for_size.default,
        aten.sym_constrain_range.default,
        torch._check,
    }
)


def simplify(module: fx.GraphModule) -> None:
    """Rewrite an exported graph, in place.

    1. regions of autocast and no_grad are inlined
    2. y = transpose_(x, 1, 2); z = relu(x)     ->  y = transpose(x, 1, 2); z = relu(y)
    3. empty([n, 3]), empty_like(x), new_empty  ->  full([n, 3], nan) ...: what is never filled shows itself
    4. what a mask made of the picture lets through is computed for all (see `capture.masked_parts`)
    5. item(x), and what checks it, that nobody reads  ->  nothing

    Raises:
        UnsupportedError: autocast is on, or control flow depends on data (torch.cond and its like).
    """
    inline_regions(module)
    widen_masked_parts(module)
    for node in list(module.graph.nodes):
        if isinstance(node.target, HigherOrderOperator):
            raise UnsupportedError(
                f"the network decides by the values of a tensor (torch.{node.target._name}), which no fixed graph can "
                "do: replace it by torch.where, or compile the part of the network without it"
            )
        if getattr(node.target, "__module__", "") == "torch._functorch.predispatch":
            raise UnsupportedError(
                "the network maps a function with torch.vmap or torch.func, which torch.export leaves as it is: call "
                "the function on the whole batch"
            )
        if node.target in IN_ANOTHER_SHAPE:
            _reshape(module.graph, node)
        elif node.target in UNFILLED:
            UNFILLED[node.target](node, _nothing(node.meta["val"]))
    for node in reversed(module.graph.nodes):
        if not node.users and (node.target in READS or _is_check_of_numbers(node)):
            module.graph.erase_node(node)


READS = frozenset({aten.item.default, aten._local_scalar_dense.default})


def _is_check_of_numbers(node: fx.Node) -> bool:
    """Does it check numbers of tensors, or compute for such a check?"""
    if node.op != "call_function":
        return False
    if node.target in CHECKS:
        return any(_comes_from_numbers(argument) for argument in node.all_input_nodes)
    return not isinstance(node.meta.get("val"), Tensor | tuple | list) and _comes_from_numbers(node)


def _comes_from_numbers(node: fx.Node) -> bool:
    waiting, seen = [node], set()
    while waiting:
        now = waiting.pop()
        if now.target in READS:
            return True
        if now not in seen and not isinstance(now.meta.get("val"), Tensor):
            seen.add(now)
            waiting.extend(now.all_input_nodes)
    return False


def _reshape(graph: fx.Graph, node: fx.Node) -> None:
    """All later readers of the tensor see it in its new shape."""
    node.target = IN_ANOTHER_SHAPE[node.target]  # type: ignore[index]
    position = {other: index for index, other in enumerate(graph.nodes)}
    (changed, *_) = node.args
    assert isinstance(changed, fx.Node)
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: position[user] > position[node])


def _nothing(allocated: Tensor) -> float | int | bool:
    if allocated.is_floating_point() or allocated.is_complex():
        return math.nan
    return False if allocated.dtype == torch.bool else torch.iinfo(allocated.dtype).min


def _full(node: fx.Node, number: float) -> None:
    node.target, node.args = aten.full.default, (node.args[0], number)
    node.kwargs = {key: given for key, given in node.kwargs.items() if key != "memory_format"}


def _full_like(node: fx.Node, number: float) -> None:
    node.target, node.args = aten.full_like.default, (node.args[0], number)


def _new_full(node: fx.Node, number: float) -> None:
    node.target, node.args = aten.new_full.default, (node.args[0], node.args[1], number)


UNFILLED: dict[Any, Callable[[fx.Node, float], None]] = {
    aten.empty.memory_format: _full,
    aten.empty_strided.default: _full,
    aten.empty_permuted.default: _full,
    aten.empty_like.default: _full_like,
    aten.new_empty.default: _new_full,
    aten.new_empty_strided.default: _new_full,
}
