"""Graph passes: each file one rewrite of a torch.fx graph, in place, that says how often it applied.

Every pass can be run alone on any graph that `capture.from_torch` gives:

    module = sptrace.compiler.capture.from_torch.capture(network, example)
    print(fold_batch_norms(module)); print(module.code)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from sptrace.passes.absorb_cotangent_factors import absorb_cotangent_factors
from sptrace.passes.absorb_temperatures import absorb_temperatures
from sptrace.passes.canonicalize_batches import canonicalize_batches
from sptrace.passes.canonicalize_compositions import canonicalize_compositions
from sptrace.passes.canonicalize_conditions import canonicalize_conditions
from sptrace.passes.canonicalize_convolutions import canonicalize_convolutions
from sptrace.passes.canonicalize_copies import canonicalize_copies
from sptrace.passes.canonicalize_einsum import canonicalize_einsum
from sptrace.passes.canonicalize_extrema import canonicalize_extrema
from sptrace.passes.canonicalize_functions import canonicalize_functions
from sptrace.passes.canonicalize_indexing import canonicalize_indexing
from sptrace.passes.canonicalize_kernels import canonicalize_kernels
from sptrace.passes.canonicalize_norms import canonicalize_norms
from sptrace.passes.canonicalize_padding import canonicalize_padding
from sptrace.passes.canonicalize_pool_ranks import canonicalize_pool_ranks
from sptrace.passes.canonicalize_pools import canonicalize_pools
from sptrace.passes.canonicalize_quantiles import canonicalize_quantiles
from sptrace.passes.canonicalize_resizing import canonicalize_resizing
from sptrace.passes.canonicalize_sampling import canonicalize_sampling
from sptrace.passes.canonicalize_scatters import canonicalize_scatters
from sptrace.passes.canonicalize_selections import canonicalize_selections
from sptrace.passes.canonicalize_shapes import canonicalize_shapes
from sptrace.passes.canonicalize_splits import canonicalize_splits
from sptrace.passes.canonicalize_synonyms import canonicalize_synonyms
from sptrace.passes.decompose import decompose
from sptrace.passes.drop_expansions import drop_expansions
from sptrace.passes.expand_attention import expand_attention
from sptrace.passes.flip_unit_stride_adjoints import flip_unit_stride_adjoints
from sptrace.passes.fold_batch_norms import fold_batch_norms
from sptrace.passes.fold_constants import fold_constants
from sptrace.passes.fold_scales import fold_scales
from sptrace.passes.functionalize import functionalize
from sptrace.passes.halve import halve
from sptrace.passes.lift_parameters import lift_parameters
from sptrace.passes.narrow_doubles import narrow_doubles
from sptrace.passes.remove_casts import remove_casts
from sptrace.passes.remove_identities import remove_identities
from sptrace.passes.separate_complex import separate_complex
from sptrace.passes.share_common_subexpressions import share_common_subexpressions
from sptrace.passes.share_gates import share_gates
from sptrace.passes.simplify_layouts import simplify_layouts
from sptrace.passes.soften import soften
from sptrace.passes.soften_attention import soften_attention
from sptrace.passes.split_packed_projections import split_packed_projections
from sptrace.passes.split_strided_adjoints import split_strided_adjoints
from sptrace.passes.unroll_recurrences import unroll_recurrences

Pass = Callable[[fx.GraphModule], int]

PREPARE: tuple[Pass, ...] = (
    narrow_doubles,
    decompose,
    fold_constants,
    functionalize,
    remove_identities,
    remove_casts,
    separate_complex,
    unroll_recurrences,
    canonicalize_synonyms,
    canonicalize_splits,
    canonicalize_batches,
    expand_attention,
    canonicalize_conditions,
    canonicalize_quantiles,
    canonicalize_selections,
    canonicalize_functions,
    canonicalize_extrema,
    canonicalize_norms,
    canonicalize_pool_ranks,
    canonicalize_compositions,
    canonicalize_kernels,
    canonicalize_copies,
    canonicalize_einsum,
    canonicalize_sampling,
    canonicalize_scatters,
    canonicalize_indexing,
    canonicalize_resizing,
    canonicalize_shapes,
    canonicalize_padding,
    canonicalize_convolutions,
    canonicalize_pools,
    fold_batch_norms,
    fold_scales,
    split_packed_projections,
)
"""Before softening and pullback: the forward graph in as few kinds of ops as possible."""

REPARAMETRIZE: tuple[Pass, ...] = (absorb_temperatures,)
"""After softening: the same function on a scale that gates need no factors for."""

LOWER: tuple[Pass, ...] = (
    share_gates,
    absorb_cotangent_factors,
    flip_unit_stride_adjoints,
    split_strided_adjoints,
    drop_expansions,
    simplify_layouts,
    share_common_subexpressions,
)
"""After the pullback: the form that runtimes run fast."""

TIDY: tuple[Pass, ...] = (share_common_subexpressions,)
"""After composition: what the pullback and the program around it compute alike."""


def run(pipeline: tuple[Pass, ...], module: fx.GraphModule) -> None:
    """Apply the passes in their order; what nobody reads is dropped before and after."""
    module.graph.eliminate_dead_code()
    for rewrite in pipeline:
        rewrite(module)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


__all__ = [
    "LOWER",
    "PREPARE",
    "REPARAMETRIZE",
    "TIDY",
    "Pass",
    "absorb_cotangent_factors",
    "absorb_temperatures",
    "canonicalize_batches",
    "canonicalize_compositions",
    "canonicalize_conditions",
    "canonicalize_convolutions",
    "canonicalize_copies",
    "canonicalize_einsum",
    "canonicalize_extrema",
    "canonicalize_functions",
    "canonicalize_indexing",
    "canonicalize_kernels",
    "canonicalize_norms",
    "canonicalize_padding",
    "canonicalize_pool_ranks",
    "canonicalize_pools",
    "canonicalize_quantiles",
    "canonicalize_resizing",
    "canonicalize_sampling",
    "canonicalize_scatters",
    "canonicalize_selections",
    "canonicalize_shapes",
    "canonicalize_splits",
    "canonicalize_synonyms",
    "decompose",
    "drop_expansions",
    "expand_attention",
    "flip_unit_stride_adjoints",
    "fold_batch_norms",
    "fold_constants",
    "fold_scales",
    "functionalize",
    "halve",
    "lift_parameters",
    "narrow_doubles",
    "remove_casts",
    "remove_identities",
    "run",
    "separate_complex",
    "share_common_subexpressions",
    "share_gates",
    "simplify_layouts",
    "soften",
    "soften_attention",
    "split_packed_projections",
    "split_strided_adjoints",
    "unroll_recurrences",
]
