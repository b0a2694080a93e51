"""Ops that change nothing in eval mode are removed."""

from __future__ import annotations

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, shape
from sptrace.compiler.graph.facts import facts
from sptrace.errors import UnsupportedError

aten = ops.aten

DROPOUTS = {
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
LAST = 2**63 - 1
"""What torch.export writes where a slice has no end."""

COPIES = {
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.positive.default,
}


def remove_identities(module: fx.GraphModule) -> int:
    """Remove dropout, copies, and slices that take all; returns how many.

    Before:  y = dropout(x, 0.2, False); z = linear(slice(y, 0, 0, 9223372036854775807), w)
    After:   z = linear(x, w)

    A dropout that is active all the same (F.dropout without `training=`) raises UnsupportedError: the network is
    random.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target in DROPOUTS and node.args[2]:
            where = facts(node).source
            raise UnsupportedError(
                f"dropout is active ({where}), so the network answers differently every time: "
                "call .eval() on the network, and pass training=self.training to F.dropout"
            )
        whole = node.target == aten.slice.Tensor and _takes_all(*node.args, **node.kwargs)
        if whole or node.target in DROPOUTS | COPIES:
            builder.replace(node, node.args[0])
            count += 1
    return count


def _takes_all(
    x: fx.Node, dim: int = 0, start: int | None = None, end: int | fx.Node | None = None, step: int = 1
) -> bool:
    """Does slice(x, dim, start, end, step) go from the first to the last, whatever the batch?"""
    if start not in (None, 0) or step != 1:
        return False
    size = shape(x)[dim]
    return end in (None, LAST) or (isinstance(end, int) and isinstance(size, int) and 0 < size <= end)
