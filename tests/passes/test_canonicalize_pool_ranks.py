"""Pools of every rank against torch.autograd in float64, and softened ones against the eager reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import EXACT, ROUNDED, check_all, numbers
from helpers.small_networks import images, small
from torch import Tensor, nn

import sptrace
from sptrace.errors import UnsupportedError

Function = Callable[[Tensor], Tensor]


def equal_and_dead() -> Tensor:
    """[3, 2, 6, 8]: random, with rows of equal numbers, with a black half."""
    image = numbers(3, 2, 6, 8, seed=1).double()
    image[1, :, ::2], image[2, :, :, :4] = 0.5, 0.0
    return image


GROUPS: dict[str, list[Function]] = {
    "rows": [
        lambda x: F.max_pool1d(x.flatten(1, 2), 3, 2, 1),
        lambda x: F.max_pool1d(x.flatten(2), 2, 3, 0, 2, ceil_mode=True),
        lambda x: F.max_pool1d(x.flatten(2), 4),
        lambda x: F.avg_pool1d(x.flatten(2), 3, 2, 1),
        lambda x: F.avg_pool1d(x.flatten(2), 5, ceil_mode=True, count_include_pad=False),
        lambda x: F.adaptive_avg_pool1d(x.flatten(2), 12),
        lambda x: F.adaptive_max_pool1d(x.flatten(2), 12),
        lambda x: F.adaptive_max_pool1d(x.flatten(2), 1),
    ],
    "pictures": [
        lambda x: F.adaptive_max_pool2d(x, 1),
        lambda x: F.adaptive_max_pool2d(x, (3, 4)),
        lambda x: F.adaptive_max_pool2d(x, (None, 2)),
        lambda x: F.adaptive_max_pool2d(x, (4, 3)),
        lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2).cumsum(3),
        lambda x: F.max_unpool2d(*F.max_pool2d(x, (2, 3), return_indices=True), (2, 3), output_size=(6, 8)),
    ],
    "volumes": [
        lambda x: F.avg_pool3d(x[:, None], (1, 2, 3)),
        lambda x: F.avg_pool3d(x[:, None], 2, 1, 1),
        lambda x: F.avg_pool3d(x[:, None], 2, 1, 1, divisor_override=3),
        lambda x: F.avg_pool3d(x[:, None], (2, 3, 3), 2, 1, ceil_mode=True, count_include_pad=False),
        lambda x: F.max_pool3d(x[:, None], (2, 3, 2)),
        lambda x: F.max_pool3d(x[:, None], 2, 1),
        lambda x: F.max_pool3d(x[:, None], (2, 4, 2)),
        lambda x: F.max_pool3d(x, 3, 2, 1),
        lambda x: F.max_pool3d(x[:, None], 2, return_indices=True)[0],
        lambda x: F.adaptive_max_pool3d(x[:, None], (1, 2, 4)),
        lambda x: F.adaptive_avg_pool3d(x[:, None], 1),
        lambda x: F.adaptive_avg_pool3d(x[:, None], (1, 4, 3)),
        lambda x: F.local_response_norm(x, 2),
        lambda x: F.local_response_norm(x, 3, alpha=0.5, beta=0.6, k=2.0),
    ],
    "pools of powers": [
        lambda x: F.lp_pool2d(x, 2, 2),
        lambda x: F.lp_pool2d(x, 4.0, (3, 2), 2, ceil_mode=True),
        lambda x: F.lp_pool1d(x.flatten(2), 2, 4),
        lambda x: F.lp_pool1d(x.flatten(2), 1.0, 4),
        lambda x: F.lp_pool2d(F.relu(x), 3, 2),
        lambda x: F.lp_pool3d(x[:, None], 2, 2),
    ],
}


@pytest.mark.parametrize("group", GROUPS)
def test_pool(group: str) -> None:
    """Shares of windows of several sizes are constants in single precision."""
    check_all(equal_and_dead(), *GROUPS[group], tolerance=ROUNDED if group in ("rows", "volumes") else EXACT)


@pytest.mark.parametrize("preset", ["relative", "paper", "hard"])
def test_softened_pools(preset: str) -> None:
    """Compiling verifies them against the eager reference."""

    def body(self: nn.Module, x: Tensor) -> Tensor:
        y = F.relu(self.stem(x))
        rows = F.max_pool1d(y.flatten(2), 3, 2, 1)
        volume = F.max_pool3d(y[:, None], (2, 4, 2))
        parts = [rows, F.adaptive_max_pool1d(rows, 8), F.adaptive_max_pool2d(y, (2, 1)), F.lp_pool2d(y, 2, 2)]
        parts += [volume, F.adaptive_max_pool3d(volume, 1)]
        return self.head(torch.cat([part.flatten(1) for part in parts], 1))

    network = small(
        body, stem=nn.Conv2d(3, 4, 3, padding=1), head=nn.Linear(4 * (32 + 8 + 2 + 16) + 16 + 1, 5)
    )
    program = sptrace.compile(network, images(2, 8), softening=preset)
    assert {gate.kind for gate in program.description.gates} == {"relu", "max_pool"}


def test_a_volume_without_a_batch_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="single volume"):
        check_all(equal_and_dead(), lambda x: F.avg_pool3d(x, 2))
