"""Graph passes: each file one rewrite of a torch.fx graph, in place, that says how often it applied.

Every pass can be run alone on any graph that `sptrace.capture` gives:

    module = sptrace.capture.capture(network, example)
    print(fold_batch_norms(module)); print(module.code)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from sptrace.passes.canonicalize_padding import canonicalize_padding
from sptrace.passes.canonicalize_pools import canonicalize_pools
from sptrace.passes.canonicalize_shapes import canonicalize_shapes
from sptrace.passes.flip_unit_stride_adjoints import flip_unit_stride_adjoints
from sptrace.passes.fold_batch_norms import fold_batch_norms
from sptrace.passes.functionalize import functionalize
from sptrace.passes.remove_identities import remove_identities
from sptrace.passes.share_common_subexpressions import share_common_subexpressions
from sptrace.passes.soften import soften

Pass = Callable[[fx.GraphModule], int]

PREPARE: tuple[Pass, ...] = (
    functionalize,
    remove_identities,
    canonicalize_shapes,
    canonicalize_padding,
    canonicalize_pools,
    fold_batch_norms,
)
"""Before softening and pullback: the forward graph in as few kinds of ops as possible."""

LOWER: tuple[Pass, ...] = (
    flip_unit_stride_adjoints,
    share_common_subexpressions,
)
"""After the pullback: the form that runtimes run fast."""


def run(pipeline: tuple[Pass, ...], module: fx.GraphModule) -> None:
    """Apply the passes in their order, then drop what nobody reads."""
    for rewrite in pipeline:
        rewrite(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


__all__ = [
    "LOWER",
    "PREPARE",
    "Pass",
    "canonicalize_padding",
    "canonicalize_pools",
    "canonicalize_shapes",
    "flip_unit_stride_adjoints",
    "fold_batch_norms",
    "functionalize",
    "remove_identities",
    "run",
    "share_common_subexpressions",
    "soften",
]
