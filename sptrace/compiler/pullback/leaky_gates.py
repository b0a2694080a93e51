"""Activations that let something through below 0 as well: LeakyReLU, PReLU, ELU, SELU, CELU.

All are y = z m(z) with m(z) = H(z) + (1 - H(z)) q(z): H is the step at 0, q(z) = y / z what is left below it. As with
a plain ReLU (q = 0) the step is softened, H(z) -> Phi(z / tau), and q is held:

    `phi`: v (Phi(z / tau) + (1 - Phi(z / tau)) q(z))          `hard`: the ordinary derivative
"""

from __future__ import annotations

from torch import fx

from sptrace.artifact.softening import Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.temperature import phi
from sptrace.compiler.pullback.term import Term


@adjoint(gates.leaky_relu)
def leaky_relu(
    pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, slope: float | fx.Node, *, rule: str, tau: Temperature
) -> Cotangents:
    """q is the slope: a number, or for a PReLU one a channel."""
    x, cotangent = Term(pull, z), Term(pull, v)
    below = Term(pull, slope) if isinstance(slope, fx.Node) else slope
    if rule == "hard":
        yield z, (x > 0).where(cotangent, cotangent * below).node
        return
    yield z, (cotangent * _blend(phi(pull, z, tau), below)).node


@adjoint(gates.elu)
def elu(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    z: fx.Node,
    alpha: float,
    scale: float,
    input_scale: float,
    *,
    rule: str,
    tau: Temperature,
) -> Cotangents:
    """q(z) = alpha (exp(b z) - 1) / z with b = input_scale, held at its limit alpha b where z > 0; all times scale."""
    x, cotangent = Term(pull, z), Term(pull, v) * scale
    if rule == "hard":
        below = (x.clamp(high=0.0) * input_scale).exp() * (alpha * input_scale)
        yield z, (x > 0).where(cotangent, cotangent * below).node
        return
    # exp(t) - 1 = tanh(t / 2) (exp(t) + 1), which loses nothing near 0.
    t = (x * input_scale).clamp(high=-1e-12)
    below = (t * 0.5).tanh() * (t.exp() + 1) / t * (alpha * input_scale)
    yield z, (cotangent * _blend(phi(pull, z, tau), below)).node


def _blend(step: Term, below: Term | float) -> Term:
    return step + (1 - step) * below
