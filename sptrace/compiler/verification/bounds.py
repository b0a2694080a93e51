"""How far programs may be apart, and why."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sptrace.artifact.description import LARGEST_DOUBT

TOLERANCE = 1e-4
"""Largest difference, as a share of the largest value."""

HALF = 5e-2
"""The tolerance in half precision, whose numbers have 11 bits: of attributions and logits.

Measured: soft pullbacks 1e-3 (ResNet-18, ConvNeXt-T, PVTv2-b1) to 1e-2 (EfficientNet-Lite0), its ascent, which
walks on from what it found, 4e-2; logits 5e-3. Networks whose cotangents span more than half precision's range are
further off, and refused.
"""

JITTER = 3e-6
"""How close to its threshold, in standard deviations of its layer, a hard gate's input is in doubt.

Hard gates make the gradient jump where a gate's input crosses 0. Among millions of inputs some lie closer to 0 than
float32 resolves, and two correct programs put them on different sides: that moves up to a percent of the gradient's
norm, and single pixels by more. So the eager reference is repeated with such gates thrown to either side.
"""

HALF_JITTER = 2e-3
"""`JITTER` in half precision."""

SLIGHT = 1e-6
"""As much of the input's range as rounding may take from a picture."""

HALF_SLIGHT = 1e-3
"""`SLIGHT` in half precision."""


@dataclass(frozen=True)
class Bounds:
    """What errors are held to.

    Arguments:
        attributions, values: of attributions where no gate is in doubt; of logits and of a layer's channels.
        jitter: how close to its threshold a hard gate is in doubt; None: no gate is hard.
        half: is the program in half precision?
    """

    attributions: float
    values: float
    jitter: float | None
    half: bool

    @staticmethod
    def of(tolerance: float, *, hard: bool, half: bool) -> Bounds:
        """For a program of that tolerance in float32."""
        jitter = HALF_JITTER if half else JITTER
        return Bounds(
            attributions=HALF if half else tolerance,
            values=HALF if half else TOLERANCE,
            jitter=jitter if hard else None,
            half=half,
        )

    @property
    def slight(self) -> float:
        """As much as rounding takes from a picture, as a share of the input's range."""
        return HALF_SLIGHT if self.half else SLIGHT

    def bounded(self, doubts: NDArray[np.float64]) -> NDArray[np.float64]:
        """As much of what gates in doubt move as may pass."""
        return np.minimum(doubts, LARGEST_DOUBT)
