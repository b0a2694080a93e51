"""The adjoint graph: walk backwards from the output, one transposition rule a node."""

from __future__ import annotations

import inspect
import operator
from typing import cast

from torch import fx

from sptrace.compiler.graph.builder import aten, depends_on, shape, value
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.sizes import BatchSize
from sptrace.compiler.pullback.missing import why_missing
from sptrace.compiler.pullback.table import TABLE, Cotangents, Pull, Rule
from sptrace.errors import UnsupportedError


def pull_back(module: fx.GraphModule, output: fx.Node, cotangent: fx.Node, source: fx.Node) -> fx.Node:
    """Append the adjoint of `source` -> `output`, applied to `cotangent`; returns the cotangent of `source`.

    Arguments:
        module: its graph holds `source`, `output` and `cotangent`; nodes are added at its end.
        output: a node that depends on `source`.
        cotangent: same shape as `output`.
        source: the node to be explained, usually the image.

    Raises:
        UnsupportedError: an op on the way has no rule, or a rule does not cover an input that needs one.
    """
    needed = depends_on(module.graph, source)
    if output not in needed:
        raise UnsupportedError(
            "the network's output does not depend on the image: there is nothing to explain"
        )
    pull = Pull(module, needed)
    order = [node for node in module.graph.nodes if node in needed]
    contributions: dict[fx.Node, list[fx.Node]] = {output: [cotangent]}
    # Ops with several outputs get the cotangents of those that were read, by index.
    elements: dict[fx.Node, dict[int, fx.Node]] = {}
    for node in reversed(order):
        if node is source or (node not in contributions and node not in elements):
            continue
        with pull.origin(node, adjoint=True):
            if node.target is operator.getitem:
                several, index = node.args
                read = elements.setdefault(several, {})
                total = _sum(pull, contributions.pop(node))
                read[index] = _sum(pull, [read[index], total]) if index in read else total
                continue
            v = elements.pop(node) if node in elements else _sum(pull, contributions.pop(node))
            for argument, part in _apply_rule(pull, v, node):
                if part is None:
                    continue
                assert shape(part) == shape(argument), f"{node.target}: {shape(part)} for {shape(argument)}"
                contributions.setdefault(argument, []).append(part)
    if source not in contributions:
        raise UnsupportedError("no cotangent reaches the image: there is nothing to explain by these rules")
    with pull.origin(source, adjoint=True):
        return _sum(pull, contributions[source])


def _sum(pull: Pull, parts: list[fx.Node]) -> fx.Node:
    total, *others = _side_by_side(pull, parts)
    for part in others:
        total = pull.call(aten.add.Tensor, total, part)
    return total


def _side_by_side(pull: Pull, parts: list[fx.Node]) -> list[fx.Node]:
    """Parts that stand between zeros, one where the other ends, become one `cat`: the slices of a tensor, its layers.

    Otherwise each of n slices would cost a sum of the whole tensor.
    """
    stretches = {part: found for part in parts if (found := _stretch(part)) is not None}
    for dim in {dim for dim, _, _ in stretches.values()}:
        along = [part for part, (other, _, _) in stretches.items() if other == dim]
        chosen = sorted(along, key=lambda part: stretches[part])
        ends = [0, *(stretches[part][2] for part in chosen)]
        starts = [*(stretches[part][1] for part in chosen), shape(parts[0])[dim]]
        if starts == ends and len(chosen) == len(parts):
            return [pull.call(aten.cat.default, [part.args[0] for part in chosen], dim)]
    return parts


def _stretch(part: fx.Node) -> tuple[int, int, int] | None:
    """(dimension, start, end) of what stands between zeros along one dimension; None for anything else."""
    if part.target is not aten.constant_pad_nd.default or len(part.args) > 2 or part.users:
        return None
    inner, widths = cast(tuple[fx.Node, list[int]], part.args)
    padded = [index // 2 for index, width in enumerate(widths) if width != 0]
    if len(set(padded)) != 1 or min(widths) < 0:
        return None
    dim = value(part).ndim - 1 - padded[0]
    start, length = widths[2 * padded[0]], shape(inner)[dim]
    return None if isinstance(length, BatchSize) else (dim, start, start + length)


def _apply_rule(
    pull: Pull, v: fx.Node | dict[int, fx.Node], node: fx.Node
) -> list[tuple[fx.Node, fx.Node | None]]:
    rule = TABLE.get(node.target)  # type: ignore[arg-type]
    if rule is None:
        raise UnsupportedError(_complaint(node, why_missing(str(node.target))))
    pairs = [(argument, part) for argument, part in _cotangents(rule, pull, v, node) if pull.needs(argument)]
    covered = {argument for argument, _ in pairs}
    missing = [
        argument for argument in node.all_input_nodes if pull.needs(argument) and argument not in covered
    ]
    if missing:
        raise UnsupportedError(
            _complaint(
                node, f"the pullback rule for {node.target} does not cover its input {missing[0].name!r}"
            )
        )
    return pairs


def _cotangents(rule: Rule, pull: Pull, v: fx.Node | dict[int, fx.Node], node: fx.Node) -> Cotangents:
    try:
        inspect.signature(rule).bind(pull, v, node, *node.args, **node.kwargs)
    except TypeError as error:
        raise UnsupportedError(
            _complaint(node, f"the pullback rule for {_name(node)} does not cover its arguments: {error}")
        ) from None
    try:
        yield from rule(pull, v, node, *node.args, **node.kwargs)
    except UnsupportedError as error:
        raise UnsupportedError(_complaint(node, f"{_name(node)} has no pullback here: {error}")) from None


def _name(node: fx.Node) -> str:
    """Of an op, or of a gate, which is a function."""
    return str(getattr(node.target, "__name__", "")) if inspect.isfunction(node.target) else str(node.target)


def _complaint(node: fx.Node, what: str) -> str:
    where = facts(node).path or "the network's top level"
    source = facts(node).source
    return (
        f"{what} (module {where}, {source}): replace the op in the network, "
        "or add a rule to sptrace.compiler.pullback"
    )
