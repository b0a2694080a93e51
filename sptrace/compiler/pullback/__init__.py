"""The adjoint: a table of transposition rules, grouped by family, and the walk that applies them."""

from sptrace.compiler.pullback import (
    arithmetic,
    attention,
    convolution,
    functions,
    gates,
    leaky_gates,
    linear,
    normalisation,
    pooling,
    reductions,
    sampling,
    selection,
    shape,
    smooth_gates,
    trigonometry,
    windows,
)
from sptrace.compiler.pullback.table import TABLE
from sptrace.compiler.pullback.walk import pull_back

__all__ = [
    "TABLE",
    "arithmetic",
    "attention",
    "convolution",
    "functions",
    "gates",
    "leaky_gates",
    "linear",
    "normalisation",
    "pooling",
    "pull_back",
    "reductions",
    "sampling",
    "selection",
    "shape",
    "smooth_gates",
    "trigonometry",
    "windows",
]
