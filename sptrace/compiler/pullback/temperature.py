"""Temperatures: what a soft gate divides its input by."""

from __future__ import annotations

import math

from torch import fx

from sptrace.artifact.softening import Relative, Temperature
from sptrace.compiler.graph.builder import aten, is_batch, shape, value
from sptrace.compiler.graph.sizes import BATCH, BatchSize
from sptrace.compiler.pullback.table import Pull
from sptrace.compiler.pullback.term import Term
from sptrace.errors import UnsupportedError

SMALLEST = 1e-12
"""A layer whose input is the same everywhere has no scale; this keeps its gates finite."""


def over_temperature(pull: Pull, z: fx.Node, tau: Temperature, times: float = 1.0) -> Term:
    """`times` z / tau, in the shape of z; a rule without a temperature has tau = 1."""
    return Term(pull, z) * inverse_temperature(pull, z, tau, times)


def phi(pull: Pull, z: fx.Node, tau: Temperature) -> Term:
    """Phi(z / tau)."""
    return twice_phi(pull, z, tau) * 0.5


def twice_phi(pull: Pull, z: fx.Node, tau: Temperature) -> Term:
    """2 Phi(z / tau) = 1 + erf(z / (tau sqrt 2)); whoever halves the product last may find weights that take it on."""
    return over_temperature(pull, z, tau, 1 / math.sqrt(2)).erf() + 1.0


def inverse_temperature(pull: Pull, z: fx.Node, tau: Temperature, times: float = 1.0) -> Term | float:
    """`times` / tau: a number, or for a relative temperature one number a picture that broadcasts over z."""
    if not isinstance(tau, Relative):
        return times / (tau or 1.0)
    return _squared_scale(pull, z, tau.unit).clamp(low=SMALLEST**2).rsqrt() * (times / tau.factor)


def _squared_scale(pull: Pull, z: fx.Node, unit: str) -> Term:
    """The square of the scale of z over each picture, broadcasting over z."""
    sizes = shape(z)
    pull.sizes(z, range(1, len(sizes)))
    if is_batch(z, 0):
        return _mean_square(Term(pull, z), list(range(1, len(sizes))), unit)
    # Several rows a picture: windows of it, one after the other.
    if not isinstance(sizes[0], BatchSize) or _joins_versions(z):
        raise UnsupportedError(
            "a relative temperature of each picture's own needs to know which numbers belong to which picture (scale "
            "'calibration' need not)"
        )
    rows = sizes[0].each
    square = _mean_square(Term(pull, pull.reshape(z, [BATCH, rows * value(z)[0].numel()])), [1], unit)
    repeated = pull.expand(square.node, [BATCH, rows])
    return Term(pull, pull.reshape(repeated, [sizes[0]] + [1] * (len(sizes) - 1)))


def _joins_versions(z: fx.Node) -> bool:
    """Do all pictures lie there once, and then once more, as in cat([x, flip(x)])? See `canonicalize_batches`."""
    waiting, seen = [z], {z}
    while waiting:
        node = waiting.pop()
        new = [each for each in node.all_input_nodes if each not in seen]
        if node.target is aten.reshape.default and _begins_with_versions(
            node.all_input_nodes[0], shape(node)[0]
        ):
            return True
        seen.update(new)
        waiting.extend(new)
    return False


def _begins_with_versions(x: fx.Node, rows: int | BatchSize) -> bool:
    """Is x [versions, pictures, ...], and `rows` the number of both together?"""
    match shape(x)[:2]:
        case [int(versions), BatchSize(each)]:
            return versions > 1 and rows == BatchSize(versions * each)
    return False


def _mean_square(x: Term, dims: list[int], unit: str) -> Term:
    """Of x without its mean, unit `std`; of its positive part, unit `rms`."""
    part = x - x.mean(dims) if unit == "std" else x.clamp(low=0.0)
    return (part * part).mean(dims)
