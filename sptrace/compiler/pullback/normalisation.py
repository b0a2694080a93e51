"""Norms with statistics of their own: layer norm, group norm, instance norm, RMS norm.

Rule `frozen` (arXiv 2507.22832): mean and variance are constants of this picture and carry no cotangent, so a norm is
an affine map, x* = v weight / sqrt(variance + eps). Rule `hard` is the ordinary derivative: with g = v weight,
r = 1 / sqrt(variance + eps) and u = (x - mean) r,

    x* = r (g - mean(g) - u mean(g u)),          RMS norm, which has no mean:  x* = r (g - u mean(g u))

A single number less its mean is 0 whatever the picture: such a layer norm is a constant, and gives no cotangent.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import shape, value
from sptrace.compiler.pullback.table import Cotangents, Pull, adjoint
from sptrace.compiler.pullback.term import Term


@adjoint(gates.layer_norm)
def layer_norm(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    normalized_shape: Sequence[int],
    weight: fx.Node | None,
    bias: fx.Node | None,
    eps: float,
    *,
    rule: str,
    tau: None,
) -> Cotangents:
    """Statistics over the last dimensions."""
    dims = list(range(-len(normalized_shape), 0))
    if set(pull.sizes(x, dims)) == {1}:
        yield x, None
        return
    weighted = _weighted(pull, v, weight)
    if rule == "frozen":
        scale = pull.call(gates.inverse_deviation, x, list(normalized_shape), eps)
        yield x, (weighted * Term(pull, scale)).node
        return
    yield x, _pulled(Term(pull, x), weighted, dims, eps, rule, centred=True).node


@adjoint(gates.rms_norm)
def rms_norm(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    normalized_shape: Sequence[int],
    weight: fx.Node | None,
    eps: float,
    *,
    rule: str,
    tau: None,
) -> Cotangents:
    """The mean square over the last dimensions."""
    dims = list(range(-len(normalized_shape), 0))
    pull.sizes(x, dims)
    yield x, _pulled(Term(pull, x), _weighted(pull, v, weight), dims, eps, rule, centred=False).node


@adjoint(gates.group_norm)
def group_norm(
    pull: Pull,
    v: fx.Node,
    y: fx.Node,
    x: fx.Node,
    groups: int,
    weight: fx.Node | None,
    bias: fx.Node | None,
    eps: float,
    *,
    rule: str,
    tau: None,
) -> Cotangents:
    """Statistics over each group of channels: over the rows of x and v as [N, groups, the rest]."""
    sizes = shape(x)
    pull.sizes(x, range(1, len(sizes)))
    if weight is not None:
        weight = pull.reshape(weight, [1, -1] + [1] * (len(sizes) - 2))
    rows = [sizes[0], groups, value(x)[0].numel() // groups]
    inputs, cotangents = (pull.reshape(node, rows) for node in (x, _weighted(pull, v, weight).node))
    pulled = _pulled(Term(pull, inputs), Term(pull, cotangents), [2], eps, rule, centred=True)
    yield x, pull.reshape(pulled.node, sizes)


def _weighted(pull: Pull, v: fx.Node, weight: fx.Node | None) -> Term:
    return Term(pull, v) if weight is None else Term(pull, v) * Term(pull, weight)


def _pulled(x: Term, g: Term, dims: Sequence[int], eps: float, rule: str, *, centred: bool) -> Term:
    deviation = x - x.mean(dims) if centred else x
    scale = ((deviation * deviation).mean(dims) + eps).rsqrt()
    if rule == "frozen":
        return g * scale
    standard = deviation * scale
    moved = standard * (g * standard).mean(dims)
    return (g - g.mean(dims) - moved if centred else g - moved) * scale
