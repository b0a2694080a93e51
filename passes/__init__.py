"""Graph passes: each file one rewrite of a torch.fx graph, in place, that says how often it applied.

Every pass can be run alone on any graph that `sptrace.capture` gives:

    module = sptrace.capture.capture(network, example)
    print(fold_batch_norms(module)); print(module.code)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from sptrace.passes.canonicalize_compositions import canonicalize_compositions
from sptrace.passes.canonicalize_convolutions import canonicalize_convolutions
from sptrace.passes.canonicalize_copies import canonicalize_copies
from sptrace.passes.canonicalize_einsum import canonicalize_einsum
from sptrace.passes.canonicalize_indexing import canonicalize_indexing
from sptrace.passes.canonicalize_padding import canonicalize_padding
from sptrace.passes.canonicalize_pools import canonicalize_pools
from sptrace.passes.canonicalize_resizing import canonicalize_resizing
from sptrace.passes.canonicalize_shapes import canonicalize_shapes
from sptrace.passes.canonicalize_splits import canonicalize_splits
from sptrace.passes.canonicalize_synonyms import canonicalize_synonyms
from sptrace.passes.expand_attention import expand_attention
from sptrace.passes.flip_unit_stride_adjoints import flip_unit_stride_adjoints
from sptrace.passes.fold_batch_norms import fold_batch_norms
from sptrace.passes.fold_constants import fold_constants
from sptrace.passes.functionalize import functionalize
from sptrace.passes.lift_parameters import lift_parameters
from sptrace.passes.remove_casts import remove_casts
from sptrace.passes.remove_identities import remove_identities
from sptrace.passes.share_common_subexpressions import share_common_subexpressions
from sptrace.passes.soften import soften
from sptrace.passes.soften_attention import soften_attention
from sptrace.passes.split_packed_projections import split_packed_projections

Pass = Callable[[fx.GraphModule], int]

PREPARE: tuple[Pass, ...] = (
    fold_constants,
    functionalize,
    remove_identities,
    remove_casts,
    canonicalize_synonyms,
    canonicalize_splits,
    expand_attention,
    canonicalize_compositions,
    canonicalize_copies,
    canonicalize_einsum,
    canonicalize_indexing,
    canonicalize_resizing,
    canonicalize_shapes,
    canonicalize_padding,
    canonicalize_convolutions,
    canonicalize_pools,
    fold_batch_norms,
    split_packed_projections,
)
"""Before softening and pullback: the forward graph in as few kinds of ops as possible."""

LOWER: tuple[Pass, ...] = (
    flip_unit_stride_adjoints,
    share_common_subexpressions,
)
"""After the pullback: the form that runtimes run fast."""

TIDY: tuple[Pass, ...] = (share_common_subexpressions,)
"""After composition: what the pullback and the program around it compute alike."""


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
    "TIDY",
    "Pass",
    "canonicalize_compositions",
    "canonicalize_convolutions",
    "canonicalize_copies",
    "canonicalize_einsum",
    "canonicalize_indexing",
    "canonicalize_padding",
    "canonicalize_pools",
    "canonicalize_resizing",
    "canonicalize_shapes",
    "canonicalize_splits",
    "canonicalize_synonyms",
    "expand_attention",
    "flip_unit_stride_adjoints",
    "fold_batch_norms",
    "fold_constants",
    "functionalize",
    "lift_parameters",
    "remove_casts",
    "remove_identities",
    "run",
    "share_common_subexpressions",
    "soften",
    "soften_attention",
    "split_packed_projections",
]
