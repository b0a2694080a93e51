"""Smooth gates that a network writes out of simpler ops: x * (1 + erf(x / sqrt 2)) / 2, x * relu6(x + 3) / 6 ..."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.facts import Target

aten = torch.ops.aten


class Gate(NamedTuple):
    """What a node is: factor * gate(z, ...), with -z in place of z if it is mirrored.

    Arguments:
        kind: of gate, a name of `sptrace.artifact.softening.RULES`.
        target: the gate, a function of `graph.gates`.
        arguments: of the gate, z first. Of a maximum over several maps, the list of these.
        factor: what the gate's value is multiplied by.
        mirrored: is it the gate of -z?
    """

    kind: str
    target: Target
    arguments: tuple[Any, ...]
    factor: float = 1.0
    mirrored: bool = False


FAR = 40.0
"""Here every gate is a straight line, and exp(2 z) is still a float32."""

_POSITIVE = torch.cat([torch.arange(0.013, 9, 0.17), torch.tensor([1.0, FAR])]).double().sort().values

POINTS = torch.cat([-_POSITIVE.flip(0), torch.zeros(1).double(), _POSITIVE])
"""Where functions are compared, float64: the same on either side of 0."""

_LEFT, _RIGHT, _ZERO = 0, len(POINTS) - 1, len(_POSITIVE)
_ONE, _MINUS_ONE = (POINTS.tolist().index(number) for number in (1, -1))

ALIKE = 2e-6
"""How much two curves may differ, as a share of max(1, |z|): constants are written with some seven digits."""

BENDING: set[Target] = {
    aten.clamp.default,
    aten.clamp_max.default,
    aten.clamp_min.default,
    aten.elu.default,
    aten.erf.default,
    aten.erfc.default,
    aten.exp.default,
    aten.expm1.default,
    aten.hardsigmoid.default,
    aten.hardtanh.default,
    aten.maximum.default,
    aten.minimum.default,
    aten.relu.default,
    aten.relu6.default,
    aten.sigmoid.default,
    aten.softplus.default,
    aten.tanh.default,
}
"""One of these is in every curve."""

POINTWISE: set[Target] = BENDING | {
    aten.abs.default,
    aten.add.Scalar,
    aten.add.Tensor,
    aten.div.Scalar,
    aten.div.Tensor,
    aten.log.default,
    aten.log1p.default,
    aten.mul.Scalar,
    aten.mul.Tensor,
    aten.neg.default,
    aten.pow.Tensor_Scalar,
    aten.reciprocal.default,
    aten.rsub.Scalar,
    aten.rsub.Tensor,
    aten.sqrt.default,
    aten.sub.Scalar,
    aten.sub.Tensor,
    aten.where.Scalar,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.where.self,
    *(
        getattr(getattr(aten, name), form)
        for name in ("ge", "gt", "le", "lt")
        for form in ("Scalar", "Tensor")
    ),
}
"""What curves are written of: a number in, a number out."""


def bends(node: fx.Node, depth: int) -> bool:
    """Is something of it, at most `depth` ops before, more than a line?"""
    if node.target not in POINTWISE:
        return False
    return node.target in BENDING or (
        depth > 0 and any(bends(one, depth - 1) for one in node.all_input_nodes)
    )


def values(
    node: fx.Node, z: fx.Node, first: Mapping[fx.Node, fx.Node], number: Callable[[object], Any]
) -> Tensor | None:
    """The node's values, float64 [points], where z is POINTS; None if it is not a function of z alone.

    Arguments:
        node: what is asked for.
        z: the map that it may be a function of.
        first: of each node the first that is the same part of the same tensor.
        number: the number that a constant is; a tensor, or None, for all else.
    """
    known: dict[fx.Node, Tensor | None] = {}

    def read(item: fx.Node) -> Tensor | None:
        if item not in known:
            known[item] = compute(item)
        return known[item]

    def compute(item: fx.Node) -> Tensor | None:
        if first[item] is first[z]:
            return POINTS
        constant = number(item)
        if isinstance(constant, float):
            return torch.tensor(constant, dtype=torch.float64)
        if item.target == aten.to.dtype:
            given = read(item.all_input_nodes[0])
            return None if given is None else given.double()
        if item.target not in POINTWISE or any(read(one) is None for one in item.all_input_nodes):
            return None
        args, kwargs = fx.node.map_arg((item.args, item.kwargs), read)
        answer: Tensor = item.target(*args, **kwargs)
        return answer

    found = read(node)
    return found if found is not None and found.shape == POINTS.shape and found.is_floating_point() else None


def named(sampled: Tensor, z: fx.Node) -> Gate | None:
    """The gate of z whose values, float64 [points], these are at POINTS; None if it is none of `graph.gates`."""
    for mirrored, turned in ((False, sampled), (True, -sampled.flip(0))):
        slope = float(turned[_RIGHT]) / FAR
        if not math.isfinite(slope) or abs(slope) < 1e-6:
            continue
        gate = _of_slope_1(turned / slope, z)
        if gate is not None:
            return gate._replace(factor=_written(-slope if mirrored else slope), mirrored=mirrored)
    return None


def _of_slope_1(sampled: Tensor, z: fx.Node) -> Gate | None:
    """The gate if it goes to z as z grows."""
    candidates = [
        Gate("gelu", gates.gelu, (z, "none")),
        Gate("gelu", gates.gelu, (z, "tanh")),
        Gate("hardswish", gates.hardswish, (z,)),
        Gate("mish", gates.mish, (z,)),
    ]
    one, zero, below, left = (float(sampled[place]) for place in (_ONE, _ZERO, _MINUS_ONE, _LEFT))
    if 0 < one < 1:
        sharpness = _written(math.log(one / (1 - one)))
        candidates.append(Gate("silu" if sharpness == 1 else "quick_gelu", gates.silu, (z, sharpness)))
    if zero > 0:
        candidates.append(Gate("softplus", gates.softplus, (z, _written(math.log(2) / zero), 20.0)))
    if left < 0 and below > left:
        steepness = -math.log(1 - below / left)
        candidates.append(Gate("elu", gates.elu, (z, _written(-left), 1.0, _written(steepness))))
    allowed = ALIKE * POINTS.abs().clamp(min=1)
    for gate in candidates:
        values_of_gate = gate.target(POINTS, *gate.arguments[1:], rule="hard", tau=None)
        if bool(((values_of_gate - sampled).abs() <= allowed).all()):
            return gate
    return None


def _written(number: float) -> float:
    """The number as somebody would write it, without the rounding of what it was found by."""
    return float(f"{number:.8g}")
