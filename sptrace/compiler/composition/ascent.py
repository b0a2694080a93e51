"""Walking along the pullback: pullback_ascent, gradient_ascent and double_pullback (arXiv 2507.22832)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from sptrace.compiler.assemble import Assembled
from sptrace.compiler.composition.composer import Composer, aten, number
from sptrace.compiler.graph.builder import shape
from sptrace.compiler.graph.facts import facts

TINY = 1e-30
"""Keeps a division by the norm of an all-zero attribution finite."""


def ascend(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """x_{k+1} = P(x_k + alpha nu(x_k) / |nu(x_k)|_2) for `steps` steps; the attribution is x_K - x_0.

    The difference to x_0 itself is what is carried from step to step, so that no digit is lost by subtracting pictures.
    Outputs: attribution, logits (of x_0), image_out = x_K, and logits_out of x_K where they are asked for.
    """
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    steps = composer.input("steps", number(torch.int64), settings["steps"])
    alpha = composer.input("alpha", number(torch.float32), settings["alpha"])
    wanted = settings["logits_out"]
    # The logits of x_K take one round more: a second copy of the network would double the file.
    rounds = composer.call(aten.add.Tensor, steps, 1) if wanted else steps
    fixed = [image, alpha, steps] if wanted else [image, alpha]
    body = _step(assembled, settings)
    moved, answers = composer.rounds(body, rounds, image, neuron, fixed, logits_out=wanted)
    if settings["clamp"] == "last" and not wanted:
        moved = _within_range(composer, moved, image, assembled.input_range)
    image_out = composer.call(aten.add.Tensor, image, moved)
    return composer.outputs(attribution=moved, image_out=image_out, **answers)


def _step(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """One step. Carried: x_k - x_0, what is explained (resolved at once), answers at x_0. Fixed: x_0, alpha.

    With logits_out the logits of x_k are carried too, and steps is fixed: the round of that number goes nowhere.
    """
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    moved = composer.input_like_image("moved")
    chosen, answers = composer.input_like_chosen(), composer.inputs_like_answers()
    if settings["logits_out"]:
        composer.input("logits_out", facts(answers["logits"]).values)
    image = composer.input_like_image("image")
    alpha = composer.input("alpha", number(torch.float32))
    arrived = None
    if settings["logits_out"]:
        left = composer.call(aten.sub.Tensor, index, composer.input("steps", number(torch.int64)))
        arrived = composer.call(aten.eq.Scalar, left, 0)
    before = moved
    if settings["clamp"] == "last" and arrived is not None:
        clamped = _within_range(composer, moved, image, assembled.input_range)
        before = composer.call(aten.where.self, arrived, clamped, moved)
    here = composer.pull(composer.call(aten.add.Tensor, image, before), chosen)
    step = composer.call(aten.div.Tensor, here.attribution, _norm(composer, here.attribution, TINY))
    moved = composer.call(aten.add.Tensor, before, composer.call(aten.mul.Tensor, step, alpha))
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
    answers = composer.choose(composer.call(aten.eq.Scalar, index, 0), here.answers, answers)
    if arrived is not None:
        moved = composer.call(aten.where.self, arrived, before, moved)
        answers["logits_out"] = here.answers["logits"]
    return composer.outputs(moved=moved, chosen=here.chosen, **answers)


def double(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """nu(x + alpha nu(x))."""
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    factor = composer.input("alpha", number(torch.float32), settings["alpha"])
    rounds = composer.constant("rounds", torch.tensor(2))
    attribution, answers = composer.rounds(_again(assembled), rounds, image, neuron, [image, factor])
    return composer.outputs(attribution=attribution, **answers)


def _again(assembled: Assembled) -> fx.GraphModule:
    """One round. Carried: the attribution so far (0 at first), what is explained, answers at x. Fixed: x, alpha."""
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    attribution = composer.input_like_image("attribution")
    chosen, answers = composer.input_like_chosen(), composer.inputs_like_answers()
    image = composer.input_like_image("image")
    alpha = composer.input("alpha", number(torch.float32))
    point = composer.call(aten.add.Tensor, image, composer.call(aten.mul.Tensor, attribution, alpha))
    here = composer.pull(point, chosen)
    answers = composer.choose(composer.call(aten.eq.Scalar, index, 0), here.answers, answers)
    return composer.outputs(attribution=here.attribution, chosen=here.chosen, **answers)


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
