"""What is piecewise on the way from the image to the output and is no gate: it stays hard."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, fx

from sptrace.artifact.description import HardOp
from sptrace.artifact.softening import Softening
from sptrace.compiler.graph.builder import influenced_by, placeholder, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.ranking import places
from sptrace.passes.soften import recognised
from sptrace.passes.spellings import COMPARISONS, inputs

aten = torch.ops.aten

KINKED: set[Target] = {
    aten.abs.default,
    aten.amax.default,
    aten.amin.default,
    aten.clamp.default,
    aten.clamp.Tensor,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.cummax.default,
    aten.cummin.default,
    aten.hardshrink.default,
    aten.hardsigmoid.default,
    aten.hardtanh.default,
    aten.kthvalue.default,
    aten.max.dim,
    aten.maximum.default,
    aten.median.dim,
    aten.min.dim,
    aten.minimum.default,
    aten.softshrink.default,
    aten.sort.default,
    aten.sort.stable,
    aten.topk.default,
}
"""Ops whose derivative jumps."""

STEPS: set[Target] = {
    aten.argmax.default,
    aten.argmin.default,
    aten.argsort.default,
    aten.bucketize.Tensor,
    aten.ceil.default,
    aten.floor.default,
    aten.fmod.Scalar,
    aten.frac.default,
    aten.heaviside.default,
    aten.remainder.Scalar,
    aten.round.default,
    aten.round.decimals,
    aten.searchsorted.Tensor,
    aten.sign.default,
    aten.trunc.default,
}
"""Ops whose value jumps."""

GUARD = 1e-4
"""A norm, a deviation or another number that is never below 0 is kept above such a bound for the sake of a quotient."""

NEVER_NEGATIVE: set[Target] = {
    aten.abs.default,
    aten.exp.default,
    aten.relu.default,
    aten.sigmoid.default,
    aten.softmax.int,
    aten.softplus.default,
    aten.sqrt.default,
}

AS_THEIR_INPUT: set[Target] = {
    aten.add.Tensor,
    aten.amax.default,
    aten.expand.default,
    aten.mean.dim,
    aten.permute.default,
    aten.reshape.default,
    aten.sum.dim_IntList,
    aten.transpose.int,
    aten.unsqueeze.default,
}
"""Ops whose result is not negative if nothing is that they read."""


def left_hard(module: fx.GraphModule, softening: Softening) -> tuple[HardOp, ...]:
    """List the piecewise ops between image and output that are no gates, each once a module.

    Arguments:
        module: softened, before the pullback.
        softening: where nothing of it is softened, nothing is listed: all is the ordinary gradient.
    """
    rules = {gate.rule for gate in softening.gates().values()}
    rules |= {str(one.rule) for changes in softening.overrides.values() for one in changes.values()}
    if rules <= {"hard", "full", "None"}:
        return ()
    influenced = influenced_by(module.graph, placeholder(module.graph, "image"))
    found = [node for node in _on_the_way(module) if node in influenced and _is_piecewise(node, influenced)]
    return tuple(dict.fromkeys(HardOp(_name(node), str(facts(node).path)) for node in found))


def _name(node: fx.Node) -> str:
    if node.target is places:
        return "top-k or sort"  # median and kthvalue too: the places of the largest
    return str(node.target).removeprefix("aten.").partition(".")[0]


def _on_the_way(module: fx.GraphModule) -> Iterable[fx.Node]:
    """What the output is made of, but for what gates are made of, and for numbers that carry no cotangent.

    Behind a `detach` only masks count: they gate what they are multiplied with.
    """
    gates = recognised(module)
    wanted: set[fx.Node] = set()
    detached: set[fx.Node] = set()
    way: list[fx.Node] = []
    for node in reversed(module.graph.nodes):
        if node.op == "output":
            wanted.update(node.all_input_nodes)
            continue
        if (node not in wanted and node not in detached) or _is_check(node):
            continue
        read = inputs(gates[node]) if node in gates else node.all_input_nodes
        if node in wanted and node.target != aten.detach.default:
            wanted.update(read)
            if node not in gates:
                way.append(node)
        else:
            detached.update(read)
            if node.target in COMPARISONS:
                way.append(node)
    return reversed(way)


def _is_piecewise(node: fx.Node, influenced: set[fx.Node]) -> bool:
    if node.target is places:
        return True
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if node.target in COMPARISONS:
        return any(one in influenced for one in node.all_input_nodes)
    if node.target == aten.to.dtype:
        given, made = (value(one).dtype for one in (node.all_input_nodes[0], node))
        return given.is_floating_point and not made.is_floating_point
    return node.target in KINKED | STEPS and not _is_guard(node)


def _is_check(node: fx.Node) -> bool:
    """Does it ask for infinite numbers, or for those that are none? No finite number is on the other side."""
    if node.target not in COMPARISONS:
        return False
    infinite = any(isinstance(argument, float) and math.isinf(argument) for argument in node.args)
    return infinite or (len(node.args) == 2 and node.args[0] is node.args[1])


def _is_guard(node: fx.Node) -> bool:
    x, *bounds = node.args
    if node.target not in (aten.clamp_min.default, aten.clamp.default) or len(bounds) != 1:
        return False
    return isinstance(bounds[0], int | float) and bounds[0] <= GUARD and _is_never_negative(x)


def _is_never_negative(x: object) -> bool:
    if not isinstance(x, fx.Node) or not isinstance(facts(x).first, Tensor):
        return False
    name = getattr(x.target, "__name__", "")
    if x.target in NEVER_NEGATIVE or name in ("relu", "root"):
        return True
    if x.target == aten.mul.Tensor:
        return x.args[0] is x.args[1]
    return x.target in AS_THEIR_INPUT and all(map(_is_never_negative, x.all_input_nodes))


def warning(ops: tuple[HardOp, ...]) -> str:
    """One line that names them."""
    listed = ", ".join(map(str, ops[:5])) + (f" and {len(ops) - 5} more" if len(ops) > 5 else "")
    return (
        f"left hard: {listed}: piecewise, but no gate that can be softened, so the explanation follows the ordinary "
        "gradient there, which is 0 through comparisons and rounding"
    )
