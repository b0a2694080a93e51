"""Where the pullback multiplies by the very gate that the network multiplied by, it is computed once."""

from __future__ import annotations

from torch import fx

from sptrace.compiler.pullback.smooth_gates import as_product
from sptrace.compiler.pullback.table import Pull


def share_gates(module: fx.GraphModule) -> int:
    """Write smooth activations as products with their gate, if the pullback has the same gate; returns how many.

    Before:  y = gelu(z), tau = 1;  z* = mul(v, phi(z))
    After:   m = phi(z);  y = mul(z, m);  z* = mul(v, phi(z)), which is m (pass `share_common_subexpressions`)

    The pullback must be there. What runtimes have as one op, GELU, costs them as much as the gate alone.
    """
    builder = Pull(module, set())
    count = 0
    for node in list(module.graph.nodes):
        with builder.replacing(node):
            product = as_product(builder, node)
        if product is not None:
            builder.replace(node, product)
            count += 1
    return count
