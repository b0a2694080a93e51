"""Networks that average over versions of each picture, all in one batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.explained import assert_gradient
from helpers.small_networks import images
from helpers.tails import Tail
from torch import Tensor

import sptrace


class Versions(Tail):
    """`Tail` called by a function of the image."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.versions = forward

    def forward(self, image: Tensor) -> Tensor:
        return self.versions(self.logits, image)


def flipped(image: Tensor) -> Tensor:
    return torch.cat([image, image.flip(-1)])


def mean_of_two(image: Tensor) -> Tensor:
    network = Tail().double()
    return (network.logits(image) + network.logits(image.flip(-1))) / 2


def halves(call: Any, x: Tensor) -> Tensor:
    y = call(flipped(x))
    return (y[: len(x)] + y[len(x) :]) / 2


def half_of_the_number(call: Any, x: Tensor) -> Tensor:
    y = call(flipped(x))
    half = y.shape[0] // 2
    return (y[:half] + y[half:]) / 2


def every_second(call: Any, x: Tensor) -> Tensor:
    y = call(torch.stack([x, x.flip(-1)], 1).flatten(0, 1))
    return (y[::2] + y[1::2]) / 2


TWO: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "chunk": lambda call, x: sum(call(flipped(x)).chunk(2)) / 2,
    "tensor_split": lambda call, x: torch.stack(call(flipped(x)).tensor_split(2)).mean(0),
    "split": lambda call, x: torch.stack(call(flipped(x)).split(x.shape[0])).mean(0),
    "split by len": lambda call, x: sum(torch.split(call(flipped(x)), len(x), 0)) / 2,
    "view": lambda call, x: call(flipped(x)).view(2, len(x), -1).mean(0),
    "view, batch left over": lambda call, x: call(flipped(x)).view(2, -1, 4).mean(0),
    "unflatten": lambda call, x: call(flipped(x)).unflatten(0, (2, -1)).mean(0),
    "halves": halves,
    "half of the number": half_of_the_number,
    "stacked": lambda call, x: call(torch.stack([x, x.flip(-1)]).flatten(0, 1)).view(2, len(x), 4).mean(0),
    "every second": every_second,
}


@pytest.mark.parametrize("name", TWO)
def test_two_versions(name: str) -> None:
    assert_gradient(Versions(TWO[name]), mean_of_two)


def test_versions_in_parts() -> None:
    """Three of them, two cut off together."""

    def forward(call: Any, x: Tensor) -> Tensor:
        y = call(torch.cat([flipped(x), x * 0.5]))
        return (y[: 2 * len(x)].view(2, len(x), 4).sum(0) + y[2 * len(x) :]) / 2

    network = Tail().double()
    assert_gradient(Versions(forward), lambda x: mean_of_two(x) + network.logits(x * 0.5) / 2)


MIXED: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a view in the wrong order": lambda call, x: call(flipped(x)).view(len(x), 2, -1).mean(1),
    "a mean over the batch": lambda call, x: call(flipped(x - x.mean(0))).view(2, len(x), -1).mean(0),
    "a softmax over the batch": lambda call, x: sum(call(flipped(x)).softmax(0).chunk(2)),
}


@pytest.mark.parametrize("name", MIXED)
def test_pictures_that_are_mixed_are_refused(name: str) -> None:
    with pytest.raises(sptrace.UnsupportedError, match="depends on the others of its batch"):
        sptrace.compile(Versions(MIXED[name]), images(1))
