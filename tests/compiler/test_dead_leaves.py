from __future__ import annotations

import numpy as np
import pytest
import torch

from sptrace.artifact.description import Preprocessing
from sptrace.compiler.dead_leaves import COUNT, dead_leaves


@pytest.mark.parametrize("input_range", [(-1.0, 1.0), (0.0, 255.0)])
def test_pictures_fill_the_range(input_range: tuple[float, float]) -> None:
    preprocessing = Preprocessing(size=(40, 56), input_range=input_range)
    pictures = dead_leaves(preprocessing)
    assert pictures.shape == (COUNT, 3, 40, 56)
    assert pictures.dtype == torch.float32
    assert torch.equal(pictures, dead_leaves(preprocessing))
    low, high = input_range
    assert low <= pictures.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < pictures.max() <= high
    assert not torch.equal(pictures[0], pictures[1])


def test_they_are_the_same_everywhere() -> None:
    """Known pixels; rounding may differ from machine to machine, no more."""
    picture = dead_leaves(Preprocessing((32, 32)))[0]
    known = [
        0.766375,
        0.203138,
        0.003525,
        -0.188871,
        -0.027973,
        0.046322,
        0.455051,
        0.363820,
        0.081970,
        0.443753,
        0.149101,
        -0.120340,
        -0.198159,
        -0.002647,
        0.038802,
        0.491903,
        0.456069,
        -0.022310,
        0.720320,
        0.208148,
        -0.128933,
        -0.125841,
        0.048052,
        0.070956,
        0.284098,
        0.316942,
        -0.006826,
    ]
    assert picture[:, 3::12, 5::12].flatten().tolist() == pytest.approx(known, abs=1e-5)


def test_they_have_detail_at_every_scale_as_photographs_have() -> None:
    """Of natural pictures the power falls with the square of the frequency, twice it in each octave gives the same."""
    pictures = dead_leaves(Preprocessing((128, 128))).numpy().mean(axis=1)
    spectrum = (np.abs(np.fft.fft2(pictures)) ** 2).mean(axis=0)
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(128) * 128] * 2))
    octaves = [spectrum[(frequency >= low) & (frequency < 2 * low)].mean() for low in (2, 4, 8, 16)]
    slopes = np.diff(np.log2(octaves))
    assert (slopes < -1).all()
    assert (slopes > -3.5).all()
