"""The noise that programs draw, in numpy: what a file computes from integers with ordinary ONNX nodes."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def normal(draw: int, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Standard normal noise, float32 of this shape: the same numbers wherever they are computed.

    Arguments:
        draw: the number of the draw, from 0.
        shape: of one draw.
        seed: a whole number from 0.
    """
    prime, keys = 2**31 - 1, (1_284_865_837, 305_419_896, 1_812_433_253, 69_069_691, 1_284_865_837)
    counter = np.arange(math.prod(shape), dtype=np.int64).reshape(shape) + draw * math.prod(shape)

    def scrambled(state: NDArray[np.int64], key: int) -> NDArray[np.int64]:
        return np.asarray((((state + key) % prime) ** 2 + counter) % prime)

    state = (counter + seed) % prime
    for key in keys[:3]:
        state = scrambled(state, key)
    radius, angle = ((scrambled(state, key) + 1) / (prime + 2) for key in keys[3:])
    return np.asarray(np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle), dtype=np.float32)
