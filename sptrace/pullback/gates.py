"""The softened gates (arXiv 2507.22832, backward rules): where the method departs from the gradient.

z is the gate's input, v the cotangent from above, tau the temperature, Phi the standard normal distribution function.
"""

from __future__ import annotations

import math

from torch import fx

from sptrace import gates
from sptrace.pullback.table import Cotangents, Pull, adjoint, aten


@adjoint(gates.relu)
def relu(pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, *, rule: str, tau: float | None) -> Cotangents:
    """`phi`: v Phi(z / tau). `sigmoid`: v sigma(z / tau), the excitation pullback. `hard`: v where z > 0.

    `guided`: max(v, 0) where z > 0 (Springenberg et al., arXiv 1412.6806).
    """
    if rule == "guided":
        v = pull.call(aten.clamp_min.default, v, 0)
    if rule in ("hard", "guided"):
        yield z, pull.call(aten.where.ScalarOther, pull.call(aten.gt.Scalar, z, 0), v, 0.0)
        return
    assert tau is not None
    gate = _phi(pull, z, tau) if rule == "phi" else pull.call(aten.sigmoid.default, _scaled(pull, z, 1 / tau))
    yield z, pull.call(aten.mul.Tensor, v, gate)


@adjoint(gates.hardtanh)
def hardtanh(
    pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, low: float, high: float, *, rule: str, tau: float | None
) -> Cotangents:
    """The activation is y = z m(z); the cotangent is v times a soft m.

    ReLU6 (low = 0): m is a step at 0 times min(1, high / z) above; the step becomes Phi(z / tau). Rule `relu` keeps
    the step's Phi(z / tau) alone, as if the activation were a plain ReLU.

    Hardtanh (low < 0 < high): m = 1 inside and high / z or low / z outside. It is continuous, so there is nothing to
    soften and no temperature; rule `gate`.

    `hard`: v where low < z < high.
    """
    if rule == "hard":
        inside = pull.call(
            aten.logical_and.default, pull.call(aten.gt.Scalar, z, low), pull.call(aten.lt.Scalar, z, high)
        )
        yield z, pull.call(aten.where.ScalarOther, inside, v, 0.0)
        return
    if low == 0:
        assert tau is not None
        gated = pull.call(aten.mul.Tensor, v, _phi(pull, z, tau))
    else:
        gated = _over(pull, v, low, pull.call(aten.clamp_max.default, z, low))
    if rule != "relu":
        gated = _over(pull, gated, high, pull.call(aten.clamp_min.default, z, high))
    yield z, gated


def _over(pull: Pull, v: fx.Node, bound: float, clamped: fx.Node) -> fx.Node:
    """v * bound / max(z, bound), or min: the part of the gate that bends away from y = z."""
    return pull.call(
        aten.mul.Tensor, v, pull.call(aten.mul.Tensor, pull.call(aten.reciprocal.default, clamped), bound)
    )


def _phi(pull: Pull, z: fx.Node, tau: float) -> fx.Node:
    """Phi(z / tau) = (1 + erf(z / (tau sqrt 2))) / 2."""
    erf = pull.call(aten.erf.default, _scaled(pull, z, 1 / (tau * math.sqrt(2))))
    return pull.call(aten.add.Tensor, pull.call(aten.mul.Tensor, erf, 0.5), 0.5)


def _scaled(pull: Pull, z: fx.Node, factor: float) -> fx.Node:
    return pull.call(aten.mul.Tensor, z, factor)
