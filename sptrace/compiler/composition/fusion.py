"""Means of the pullback over noisy weights and noisy copies of the image: fusion_pullback and fusiongrad.

Bykov et al., arXiv 2106.10185; with soft gates: arXiv 2507.22832.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from sptrace.compiler.assemble import Assembled
from sptrace.compiler.composition.composer import Composer, aten, number
from sptrace.compiler.composition.noise import PRIME, normal
from sptrace.compiler.graph.builder import value


def fuse(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """Mean of nu(x + noise) over `samples` copies of the image under each of `draws` draws of the weights.

    Every number of every parameter is multiplied by 1 + weight_sigma times normal noise. Outputs: attribution; logits
    with the weights as they are.
    """
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    samples = composer.input("samples", number(torch.int64), settings["samples"])
    draws = composer.input("draws", number(torch.int64), settings["draws"])
    sigma = composer.input("sigma", number(torch.float32), settings["sigma"])
    weight_sigma = composer.input("weight_sigma", number(torch.float32), settings["weight_sigma"])
    # The first round is for the image and the weights as they are: its answers, and what a target of -1 stands for.
    rounds = composer.call(aten.add.Tensor, draws, 1)
    body = _draw(assembled, settings["seed"])
    total, answers = composer.rounds(body, rounds, image, neuron, [image, samples, sigma, weight_sigma])
    count = composer.call(aten.to.dtype, composer.call(aten.mul.Tensor, samples, draws), torch.float32)
    return composer.outputs(attribution=composer.call(aten.div.Tensor, total, count), **answers)


def _draw(assembled: Assembled, seed: int) -> fx.GraphModule:
    """One draw of the weights. Carried: the sum so far, what is explained, answers. Fixed: image and settings."""
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    total = composer.input_like_image("total")
    chosen, answers = composer.input_like_chosen(), composer.inputs_like_answers()
    image = composer.input_like_image("image")
    samples = composer.input("samples", number(torch.int64))
    sigma = composer.input("sigma", number(torch.float32))
    weight_sigma = composer.input("weight_sigma", number(torch.float32))
    first = composer.call(aten.eq.Scalar, index, 0)
    draw = composer.call(aten.sub.Tensor, index, 1)
    later = composer.call(aten.gt.Scalar, index, 0)  # 0 in the first round, then 1
    strength = composer.call(
        aten.mul.Tensor, composer.call(aten.to.dtype, later, torch.float32), weight_sigma
    )
    varied = []
    for path, name in assembled.parameters.values():
        weight = composer.share(path)
        noise = normal(composer, draw, value(weight).shape, (seed + zlib.crc32(name.encode())) % PRIME)
        factor = composer.call(aten.add.Tensor, composer.call(aten.mul.Tensor, noise, strength), 1.0)
        varied.append(composer.call(aten.mul.Tensor, weight, factor))
    more = composer.call(
        aten.mul.Tensor,
        composer.call(aten.sub.Tensor, samples, 1),
        composer.call(aten.to.dtype, later, torch.int64),
    )
    rounds = composer.call(aten.add.Tensor, more, 1)
    before = composer.call(aten.mul.Tensor, draw, samples)
    spread = composer.call(aten.mul.Tensor, composer.call(aten.to.dtype, later, torch.float32), sigma)
    body = _sample(assembled, seed)
    state = [composer.call(aten.zeros_like.default, image), chosen, *composer.no_answers(image)]
    drawn, resolved, *given = composer.loop(body, rounds, state, [image, before, spread, *varied])
    here = dict(zip(answers, given, strict=True))
    counted = composer.call(aten.where.ScalarSelf, first, 0.0, drawn)
    return composer.outputs(
        total=composer.call(aten.add.Tensor, total, counted),
        chosen=resolved,
        **composer.choose(first, here, answers),
    )


def _sample(assembled: Assembled, seed: int) -> fx.GraphModule:
    """One copy of the image. Carried: the sum so far, what is explained, answers. Fixed: image, settings, weights."""
    composer = Composer(assembled)
    index = composer.input("index", number(torch.int64))
    total = composer.input_like_image("total")
    chosen, answers = composer.input_like_chosen(), composer.inputs_like_answers()
    image = composer.input_like_image("image")
    before = composer.input("before", number(torch.int64))
    sigma = composer.input("sigma", number(torch.float32))
    parameters = {
        name: composer.input(name, composer.constant_values(path))
        for name, (path, _) in assembled.parameters.items()
    }
    noise = normal(
        composer, composer.call(aten.add.Tensor, before, index), [1, *value(image).shape[1:]], seed
    )
    noisy = composer.call(aten.add.Tensor, image, composer.call(aten.mul.Tensor, noise, sigma))
    here = composer.pull(noisy, chosen, parameters)
    total = composer.call(aten.add.Tensor, total, here.attribution)
    return composer.outputs(total=total, chosen=here.chosen, **{name: here.answers[name] for name in answers})
