"""The softened gates (arXiv 2507.22832, backward rules): where the method departs from the gradient.

z is the gate's input, v the cotangent from above, tau the temperature, Phi the standard normal distribution function.
"""

from __future__ import annotations

from torch import fx

from sptrace.artifact.softening import Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.temperature import over_temperature, twice_phi
from sptrace.compiler.pullback.term import Term


@adjoint(gates.relu)
def relu(pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, *, rule: str, tau: Temperature) -> Cotangents:
    """`phi`: v Phi(z / tau). `sigmoid`: v sigma(z / tau), the excitation pullback. `hard`: v where z > 0.

    `guided`: max(v, 0) where z > 0 (Springenberg et al., arXiv 1412.6806).
    """
    if rule == "guided":
        v = pull.call(aten.clamp_min.default, v, 0)
    if rule in ("hard", "guided"):
        yield z, pull.through(v, pull.call(aten.gt.Scalar, z, 0))
        return
    if rule == "phi":
        yield z, (Term(pull, v) * twice_phi(pull, z, tau) * 0.5).node
    else:
        yield z, (Term(pull, v) * over_temperature(pull, z, tau).sigmoid()).node


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
        yield z, pull.through(v, inside)
        return
    activation, gated = Term(pull, z), Term(pull, v)
    factor = 1.0
    if low == 0:
        gated, factor = gated * twice_phi(pull, z, tau), 0.5
    else:
        gated, factor = gated / activation.clamp(high=low), low
    if rule != "relu":
        gated, factor = gated / activation.clamp(low=high), factor * high
    yield z, (gated * factor).node
