"""Activations y = z m(z) whose m is smooth: SiLU, GELU, Hardswish, Mish; Softplus, whose slope is; and GLU.

The pullback multiplies the cotangent by the gate itself, m(z / tau), and not by the derivative m(z) + z m'(z): the
second term says how the gate would move, and the gate is held (arXiv 2507.22832). There is no step that a temperature
would have to soften; at tau = 1 the gate is the network's own. Rule `hard` is the ordinary derivative.
"""

from __future__ import annotations

import math

from torch import fx

from sptrace.artifact.softening import Temperature
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import aten
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.temperature import inverse_temperature, over_temperature
from sptrace.compiler.pullback.term import Term

SLOPE, CUBE = math.sqrt(2 / math.pi), 0.044715
"""GELU's approximation: Phi(z) = (1 + tanh(SLOPE (z + CUBE z^3))) / 2."""


@adjoint(gates.silu)
def silu(
    pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, sharpness: float, *, rule: str, tau: Temperature
) -> Cotangents:
    """y = z sigma(c z), so m = sigma(c z), c = 1 for SiLU and 1.702 for quick GELU. `gate`: v sigma(c z / tau)."""
    x = over_temperature(pull, z, tau, sharpness)
    factor = x.sigmoid()
    if rule == "hard":
        factor = factor * (x * (1 - factor) + 1)
    yield z, (factor * Term(pull, v)).node


@adjoint(gates.gelu)
def gelu(
    pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, approximate: str, *, rule: str, tau: Temperature
) -> Cotangents:
    """y = z Phi(z), so m = Phi. `gate`: v Phi(z / tau), Phi in the form that the network uses, exact or by tanh."""
    x = over_temperature(pull, z, tau)
    if rule != "hard":
        yield z, (_gelu_gate(x, approximate) * Term(pull, v)).node
        return
    if approximate == "tanh":
        square, bent = x * x, _bent(x)
        slope = (1 - bent * bent) * (square * (1.5 * SLOPE * CUBE) + 0.5 * SLOPE)
    else:
        slope = (x * x * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
    yield z, ((_gelu_gate(x, approximate) + x * slope) * Term(pull, v)).node


def _gelu_gate(x: Term, approximate: str) -> Term:
    bent = _bent(x) if approximate == "tanh" else (x * math.sqrt(0.5)).erf()
    return bent * 0.5 + 0.5


def _bent(x: Term) -> Term:
    return (x * (x * x * (SLOPE * CUBE) + SLOPE)).tanh()


@adjoint(gates.erf_gelu)
def erf_gelu(pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, *, rule: str, tau: None) -> Cotangents:
    """y = z m(z) with m(z) = 1 + erf(z). `gate`: v m(z)."""
    yield z, ((Term(pull, z).erf() + 1.0) * Term(pull, v)).node


@adjoint(gates.hardswish)
def hardswish(pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, *, rule: str, tau: Temperature) -> Cotangents:
    """y = z m(z) with m(z) = min(1, max(0, z / 6 + 1 / 2)), continuous. `gate`: v m(z / tau)."""
    x, cotangent = Term(pull, z), Term(pull, v)
    if rule == "hard":
        inside = (x > -3).where(cotangent * (x / 3 + 0.5), 0.0)
        yield z, (x < 3).where(inside, cotangent).node
        return
    yield z, (cotangent * over_temperature(pull, z, tau).hardsigmoid()).node


@adjoint(gates.mish)
def mish(pull: Pull, v: fx.Node, y: fx.Node, z: fx.Node, *, rule: str, tau: Temperature) -> Cotangents:
    """y = z m(z) with m(z) = tanh(softplus(z)). `gate`: v m(z / tau)."""
    x = over_temperature(pull, z, tau)
    factor = x.softplus().tanh()
    if rule == "hard":
        factor = factor + x * x.sigmoid() * (1 - factor * factor)
    yield z, (factor * Term(pull, v)).node


@adjoint(gates.glu)
def glu(
    pull: Pull, v: fx.Node, y: fx.Node, x: fx.Node, dim: int, *, rule: str, tau: Temperature
) -> Cotangents:
    """y = a m with x = (a, b) and m = sigma(b). `gate`: a* = v sigma(b / tau), and b, which is the gate, gets none.

    That is the rule of y = z m(z) where the gate reads other numbers than those it multiplies. `hard`: b gets its
    v a sigma'(b) too. A temperature relative to the input is one to all of x.
    """
    (size,) = pull.sizes(x, [dim])
    a, b = (
        Term(pull, pull.call(aten.slice.Tensor, x, dim, start, start + size // 2)) for start in (0, size // 2)
    )
    cotangent = Term(pull, v)
    if rule == "hard":
        gate = b.sigmoid()
        parts = (cotangent * gate, cotangent * a * gate * (1 - gate))
    else:
        gate = (b * inverse_temperature(pull, x, tau)).sigmoid()
        parts = (cotangent * gate, Term(pull, pull.call(aten.zeros_like.default, b.node)))
    yield x, pull.call(aten.cat.default, [part.node for part in parts], dim)


@adjoint(gates.softplus)
def softplus(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    z: fx.Node,
    beta: float,
    threshold: float,
    *,
    rule: str,
    tau: Temperature,
) -> Cotangents:
    """`gate`: v sigma(beta z / tau). `hard`: beyond the threshold, where softplus is z itself, v.

    softplus(0) is not 0, so no m with y = z m(z) exists. But y is a ReLU smoothed, whose step became the slope
    sigma(beta z): this is the gate. At tau = 1 that is the ordinary derivative.
    """
    x, cotangent = over_temperature(pull, z, tau, beta), Term(pull, v)
    slope = x.sigmoid() * cotangent
    if rule == "hard" and threshold < gates.SOFTPLUS_IS_LINEAR:
        slope = (x > threshold).where(cotangent, slope)
    yield z, slope.node


def as_product(pull: Pull, gate: fx.Node) -> fx.Node | None:
    """An activation y = z m(z) in terms of the m that its pullback multiplies by; None if that is another m.

    The m is the network's own at temperature 1.
    """
    if gate.kwargs.get("rule") != "gate" or gate.kwargs["tau"] not in (None, 1.0):
        return None
    z, *options = gate.args
    x = Term(pull, z)  # type: ignore[arg-type]
    if gate.target is gates.gelu:
        return (x * _gelu_gate(x, *options)).node  # type: ignore[arg-type]
    if gate.target is gates.erf_gelu:
        return (x * (x.erf() + 1.0)).node
    if gate.target is gates.silu:
        sharpness = options[0]
        assert isinstance(sharpness, int | float)
        return (x * (x * sharpness).sigmoid()).node
    if gate.target is gates.hardswish:
        return (x * x.hardsigmoid()).node
    if gate.target is gates.mish:
        return (x * x.softplus().tanh()).node
    return None
