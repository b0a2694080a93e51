"""Normal noise from integer arithmetic: the same numbers on every runtime, provider and machine, run after run.

Every element has a counter: its position in the tensor plus the tensor's size times the number of the draw. The
counter is scrambled by a few squarings modulo the prime 2^31 - 1, all exact in int64, into two uniform numbers, and
those become one normal number (Box and Muller). ONNX's own random ops give other numbers on every runtime and run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder

aten = torch.ops.aten

PRIME = 2**31 - 1
KEYS = (1_284_865_837, 305_419_896, 1_812_433_253, 69_069_691)
"""One per squaring; arbitrary numbers below the prime."""


def normal(builder: GraphBuilder, draw: fx.Node, sizes: Sequence[int], seed: int) -> fx.Node:
    """Standard normal noise, float32.

    Arguments:
        builder: where the nodes go.
        draw: int64 [], the number of the draw; equal draws are equal noise.
        sizes: shape of the noise.
        seed: 0 to 2^31 - 2; another seed, other noise.
    """
    count = math.prod(sizes)
    numbers = builder.call(aten.arange.default, count, device=torch.device("cpu"))
    position = builder.reshape(numbers, list(sizes))
    counter = builder.call(aten.add.Tensor, position, builder.call(aten.mul.Tensor, draw, count))
    state = builder.call(aten.remainder.Scalar, builder.call(aten.add.Tensor, counter, seed), PRIME)
    for key in KEYS[:3]:
        state = _scramble(builder, state, key, counter)
    radius, angle = (_uniform(builder, _scramble(builder, state, key, counter)) for key in (KEYS[3], KEYS[0]))
    log = builder.call(aten.log.default, radius)
    length = builder.call(aten.sqrt.default, builder.call(aten.mul.Tensor, log, -2.0))
    turn = builder.call(aten.cos.default, builder.call(aten.mul.Tensor, angle, 2 * math.pi))
    return builder.call(aten.mul.Tensor, length, turn)


def _scramble(builder: GraphBuilder, state: fx.Node, key: int, counter: fx.Node) -> fx.Node:
    """(state + key)^2 + counter, modulo the prime. Squares stay below 2^63 because state + key is below 2^31.5."""
    keyed = builder.call(aten.remainder.Scalar, builder.call(aten.add.Tensor, state, key), PRIME)
    square = builder.call(aten.mul.Tensor, keyed, keyed)
    return builder.call(aten.remainder.Scalar, builder.call(aten.add.Tensor, square, counter), PRIME)


def _uniform(builder: GraphBuilder, state: fx.Node) -> fx.Node:
    """From 0 .. prime - 1 to (0, 1)."""
    shifted = builder.call(aten.to.dtype, builder.call(aten.add.Tensor, state, 1), torch.float32)
    return builder.call(aten.mul.Tensor, shifted, 1.0 / (PRIME + 2))
