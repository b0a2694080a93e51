"""Every op that only gives numbers another shape becomes one `reshape` with a literal shape."""

from __future__ import annotations

from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape
from sptrace.compiler.graph.views import RESHAPES


def canonicalize_shapes(module: fx.GraphModule) -> int:
    """Replace the view family by `reshape`, the size that depends on the batch written as -1; returns how many.

    Before:  n = sym_size(x, 0); y = view(x, [n, 64, 49]); z = flatten(y, 1)
    After:   y = reshape(x, [-1, 64, 49]); z = reshape(y, [-1, 3136])

    A result with two sizes that depend on the batch is refused.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in RESHAPES:
            continue
        with builder.replacing(node):
            builder.replace(node, builder.reshape(node.args[0], shape(node)))
        count += 1
    return count
