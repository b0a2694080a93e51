"""Quantiles against torch.autograd in float64; with ties, and numbers that are missing."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.rule_checks import ROUNDED, check_all, numbers
from helpers.small_networks import images, small

from sptrace import passes
from sptrace.compiler.capture.from_torch import capture


def test_quantiles() -> None:
    check_all(
        numbers(3, 2, 5, 7, seed=1).double(),
        lambda x: x.quantile(0.3, 3),
        lambda x: x.quantile(0.0, 3),
        lambda x: x.quantile(1.0, 2, keepdim=True),
        lambda x: x.quantile(0.31, 3, interpolation="lower"),
        lambda x: x.quantile(0.31, 2, interpolation="higher"),
        lambda x: x.quantile(0.375, 2, interpolation="nearest"),
        lambda x: x.quantile(0.31, 3, interpolation="midpoint"),
        lambda x: x.quantile(torch.tensor([0.2, 0.7]).to(x), 3).movedim(0, 1),
        lambda x: x.nanquantile(0.3, 3),
        lambda x: x.nanmedian(3).values,
        lambda x: torch.nanmean(x, (2, 3)),
        tolerance=ROUNDED,
    )


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 0.99, 1.0])
def test_missing_numbers_are_left_out(q: float) -> None:
    def body(self: object, x: torch.Tensor) -> torch.Tensor:
        holes = torch.where(x > 0.2, math.nan, x)
        parts = [
            holes.nanquantile(q, 3),
            holes.nanquantile(q, 2, interpolation="nearest"),
            holes.nanmedian(3).values,
            holes.nansum(1),
            holes.nanmean(1),
            holes.quantile(q, 3),
            holes.nanmedian(3).indices.clamp(max=0).float(),
        ]
        return torch.cat([part.flatten(1) for part in parts], 1)

    network = small(body)
    module = capture(network, images(1, 8))
    passes.run(passes.PREPARE, module)
    image = images(4, 8, seed=3)
    given, wanted = module(image), network(image)
    assert torch.equal(given.isnan(), wanted.isnan())
    assert wanted.isnan().any()
    assert not wanted.isnan().all()
    assert (given - wanted).nan_to_num().abs().max() < 1e-6
