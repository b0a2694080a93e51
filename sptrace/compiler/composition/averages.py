"""Means of the pullback over many pictures near the image: smooth, integrated and fusion programs.

Smoothgrad: Smilkov et al., arXiv 1706.03825. Integrated gradients: Sundararajan et al., arXiv 1703.01365. Fusiongrad:
Bykov et al., arXiv 2106.10185. With soft gates: arXiv 2507.22832.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from sptrace.compiler.assemble import Assembled
from sptrace.compiler.composition.composer import Composer, aten, number
from sptrace.compiler.composition.noise import normal
from sptrace.compiler.graph.builder import value

Vary = Callable[[Composer, fx.Node, fx.Node, fx.Node, fx.Node], fx.Node]
"""(composer, image, number of the picture from 0, samples, strength) -> a picture near the image."""


def smooth(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """Mean of nu(x + noise) over `samples` draws of normal noise of deviation `sigma`, run-time inputs both."""

    def noisy(composer: Composer, image: fx.Node, draw: fx.Node, samples: fx.Node, sigma: fx.Node) -> fx.Node:
        noise = normal(composer, draw, [1, *value(image).shape[1:]], settings["seed"])
        return composer.call(aten.add.Tensor, image, composer.call(aten.mul.Tensor, noise, sigma))

    composer, _, total, answers = _mean(assembled, noisy, settings, "sigma")
    return composer.outputs(attribution=total, **answers)


def integrated(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """(x - baseline) times the mean of nu at the midpoints of `samples` stretches of the path from the baseline.

    The path is straight. `samples`, and `baseline` (one number for all pixels), are run-time inputs.
    """

    def between(
        composer: Composer, image: fx.Node, index: fx.Node, samples: fx.Node, base: fx.Node
    ) -> fx.Node:
        middle = composer.call(aten.add.Tensor, composer.call(aten.to.dtype, index, torch.float32), 0.5)
        share = composer.call(aten.div.Tensor, middle, composer.call(aten.to.dtype, samples, torch.float32))
        way = composer.call(aten.mul.Tensor, composer.call(aten.sub.Tensor, image, base), share)
        return composer.call(aten.add.Tensor, way, base)

    composer, image, total, answers = _mean(assembled, between, settings, "baseline")
    base = next(node for node in composer.graph.nodes if node.target == "baseline")
    distance = composer.call(aten.sub.Tensor, image, base)
    return composer.outputs(attribution=composer.call(aten.mul.Tensor, distance, total), **answers)


def _mean(
    assembled: Assembled, vary: Vary, settings: Mapping[str, Any], strength: str
) -> tuple[Composer, fx.Node, fx.Node, dict[str, fx.Node]]:
    """The open graph, its image, the mean of the pullback over what `vary` makes, and the answers at the image."""
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    count = composer.input("samples", number(torch.int64), settings["samples"])
    size = composer.input(strength, number(torch.float32), settings[strength])
    # The first round is for the image itself: its answers, and what a target of -1 stands for.
    rounds = composer.call(aten.add.Tensor, count, 1)
    body = _round(assembled, vary)
    total, answers = composer.rounds(body, rounds, image, neuron, [image, count, size])
    share = composer.call(aten.to.dtype, count, torch.float32)
    return composer, image, composer.call(aten.div.Tensor, total, share), answers


def _round(assembled: Assembled, vary: Vary) -> fx.GraphModule:
    """Carried: the sum so far, what is explained, answers at the image. Fixed: image, number of samples, strength."""
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    total = composer.input_like_image("total")
    chosen, answers = composer.input_like_chosen(), composer.inputs_like_answers()
    image = composer.input_like_image("image")
    samples = composer.input("samples", number(torch.int64))
    strength = composer.input("strength", number(torch.float32))
    first = composer.call(aten.eq.Scalar, index, 0)
    varied = vary(composer, image, composer.call(aten.sub.Tensor, index, 1), samples, strength)
    point = composer.call(aten.where.self, first, image, varied)
    here = composer.pull(point, chosen)
    counted = composer.call(aten.where.ScalarSelf, first, 0.0, here.attribution)
    total = composer.call(aten.add.Tensor, total, counted)
    return composer.outputs(total=total, chosen=here.chosen, **composer.choose(first, here.answers, answers))
