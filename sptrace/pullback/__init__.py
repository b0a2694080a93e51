"""The adjoint: a table of transposition rules, grouped by family, and the walk that applies them."""

from sptrace.pullback import arithmetic, convolution, gates, linear, pooling, shape
from sptrace.pullback.table import TABLE
from sptrace.pullback.walk import pull_back

__all__ = ["TABLE", "arithmetic", "convolution", "gates", "linear", "pooling", "pull_back", "shape"]
