"""Walking along the pullback: pullback_ascent, gradient_ascent and double_pullback (arXiv 2507.22832)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from sptrace.assemble import Assembled
from sptrace.composition.composer import Composer, aten, number
from sptrace.graph import shape

TINY = 1e-30
"""Keeps a division by the norm of an all-zero attribution finite."""


def ascend(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """x_{k+1} = P(x_k + alpha nu(x_k) / |nu(x_k)|_2) for `steps` steps; the attribution is x_K - x_0.

    The difference to x_0 itself is what is carried from step to step, so that no digit is lost by subtracting pictures.
    Outputs: attribution, logits (of x_0), image_out = x_K.
    """
    composer = Composer(assembled)
    image, target = composer.image_and_target()
    steps = composer.input("steps", number(torch.int64), settings["steps"])
    alpha = composer.input("alpha", number(torch.float32), settings["alpha"])
    state = [composer.call(aten.zeros_like.default, image), target, composer.no_logits(image)]
    body = _step(assembled, settings)
    moved, _, logits = composer.loop(body, steps, state, [image, alpha])
    if settings["clamp"] == "last":
        moved = _within_range(composer, moved, image, assembled.input_range)
    image_out = composer.call(aten.add.Tensor, image, moved)
    return composer.outputs(attribution=moved, logits=logits, image_out=image_out)


def _step(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """One step. Carried: x_k - x_0, the target (resolved in the first step), the logits of x_0. Fixed: x_0, alpha."""
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    moved = composer.input_like_pullbacks("moved", "image")
    target = composer.input_like_pullbacks("target", "target")
    logits = composer.input_like_logits("logits")
    image = composer.input_like_pullbacks("image", "image")
    alpha = composer.input("alpha", number(torch.float32))
    point = composer.call(aten.add.Tensor, image, moved)
    attribution, here, chosen = composer.pull(point, target)
    step = composer.call(aten.div.Tensor, attribution, _norm(composer, attribution, TINY))
    moved = composer.call(aten.add.Tensor, moved, composer.call(aten.mul.Tensor, step, alpha))
    epsilon = settings["epsilon"]
    if epsilon is not None:
        radius = composer.call(
            aten.div.Tensor,
            composer.constant("epsilon", torch.tensor(epsilon)),
            _norm(composer, moved, epsilon),
        )
        moved = composer.call(aten.mul.Tensor, moved, radius)
    if settings["clamp"] == "every":
        moved = _within_range(composer, moved, image, assembled.input_range)
    first = composer.call(aten.eq.Scalar, index, 0)
    logits = composer.call(aten.where.self, first, here, logits)
    return composer.outputs(moved=moved, target=chosen, logits=logits)


def double(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """nu(x + alpha nu(x))."""
    composer = Composer(assembled)
    image, target = composer.image_and_target()
    factor = composer.input("alpha", number(torch.float32), settings["alpha"])
    rounds = composer.constant("rounds", torch.tensor(2))
    state = [composer.call(aten.zeros_like.default, image), target, composer.no_logits(image)]
    attribution, _, logits = composer.loop(_again(assembled), rounds, state, [image, factor])
    return composer.outputs(attribution=attribution, logits=logits)


def _again(assembled: Assembled) -> fx.GraphModule:
    """One round. Carried: the attribution so far (0 at first), the target, the logits of x. Fixed: x, alpha."""
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    attribution = composer.input_like_pullbacks("attribution", "image")
    target = composer.input_like_pullbacks("target", "target")
    logits = composer.input_like_logits("logits")
    image = composer.input_like_pullbacks("image", "image")
    alpha = composer.input("alpha", number(torch.float32))
    point = composer.call(aten.add.Tensor, image, composer.call(aten.mul.Tensor, attribution, alpha))
    attribution, here, chosen = composer.pull(point, target)
    logits = composer.call(aten.where.self, composer.call(aten.eq.Scalar, index, 0), here, logits)
    return composer.outputs(attribution=attribution, target=chosen, logits=logits)


def _norm(composer: Composer, x: fx.Node, at_least: float) -> fx.Node:
    """The L2 norm of every sample, [N, 1, 1, 1], but not less than `at_least`."""
    dims = list(range(1, len(shape(x))))
    squares = composer.call(aten.sum.dim_IntList, composer.call(aten.mul.Tensor, x, x), dims, True)
    return composer.call(aten.clamp_min.default, composer.call(aten.sqrt.default, squares), at_least)


def _within_range(
    composer: Composer, moved: fx.Node, image: fx.Node, input_range: tuple[float, float]
) -> fx.Node:
    """clamp(x + moved) - x, computed without subtracting pictures."""
    low, high = (composer.call(aten.rsub.Scalar, image, bound) for bound in input_range)
    return composer.call(aten.minimum.default, composer.call(aten.maximum.default, moved, low), high)
