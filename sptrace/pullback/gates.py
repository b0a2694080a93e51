"""The softened gates (arXiv 2507.22832, backward rules): where the method departs from the gradient.

z is the gate's input, v the cotangent from above, tau the temperature, Phi the standard normal distribution function.
"""

from __future__ import annotations

from torch import fx

from sptrace import gates
from sptrace.pullback.table import Cotangents, Pull, adjoint, aten
from sptrace.pullback.temperature import over_temperature, phi
from sptrace.pullback.term import Term
from sptrace.softening import Temperature


@adjoint(gates.relu)
def relu(pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, *, rule: str, tau: Temperature) -> Cotangents:
    """`phi`: v Phi(z / tau). `sigmoid`: v sigma(z / tau), the excitation pullback. `hard`: v where z > 0.

    `guided`: max(v, 0) where z > 0 (Springenberg et al., arXiv 1412.6806).
    """
    if rule == "guided":
        v = pull.call(aten.clamp_min.default, v, 0)
    if rule in ("hard", "guided"):
        yield z, pull.call(aten.where.ScalarOther, pull.call(aten.gt.Scalar, z, 0), v, 0.0)
        return
    gate = phi(pull, z, tau) if rule == "phi" else over_temperature(pull, z, tau).sigmoid()
    yield z, (Term(pull, v) * gate).node


@adjoint(gates.hardtanh)
def hardtanh(
    pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, low: float, high: float, *, rule: str, tau: Temperature
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
        gated = (Term(pull, v) * phi(pull, z, tau)).node
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
