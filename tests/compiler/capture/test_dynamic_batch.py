"""Calls that torch.export would trace for one number of pictures alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from helpers.explained import assert_gradient
from helpers.small_networks import images
from helpers.tails import Tail
from torch import Tensor

import sptrace

PROTOTYPES = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def boxes_in_a_tensor(features: Tensor) -> Tensor:
    count = len(features)
    box = torch.tensor([[1.0, 1.0, 9.0, 9.0]], dtype=features.dtype).expand(count, 4)
    rows = torch.arange(count, dtype=features.dtype)[:, None]
    return torchvision.ops.roi_align(features, torch.cat([rows, box], 1), 3)


def boxes_in_a_list(features: Tensor) -> Tensor:
    return torchvision.ops.roi_align(features, [torch.tensor([[1.0, 1.0, 9.0, 9.0]])] * features.shape[0], 3)


class Network(Tail):
    def __init__(
        self, tail: Callable[[Tensor], Tensor], pool: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        super().__init__(tail)
        self.pool = pool

    def logits(self, image: Tensor) -> Tensor:
        if self.pool is None:
            return super().logits(image)
        answer: Tensor = self.fc(self.pool(torch.tanh(self.conv(image))).mean((2, 3)))
        return answer


SERVED: dict[str, dict[str, Any]] = {
    "cdist": {"tail": lambda y: -torch.cdist(y, PROTOTYPES.to(y.dtype))},
    "cdist of 30": {"tail": lambda y: -torch.cdist(y, PROTOTYPES.to(y.dtype).repeat(6, 1) + 0.1)},
    "len": {"tail": lambda y: y.view(len(y), 2, 2).flip(2).flatten(1)},
    "roi_align": {"tail": lambda y: y, "pool": boxes_in_a_tensor},
    "int": {"tail": lambda y: y.view(int(y.shape[0]), -1)},
}


@pytest.mark.parametrize("name", SERVED)
def test_served(name: str) -> None:
    twin = Network(**SERVED[name]).double()
    assert_gradient(Network(**SERVED[name]), twin)


REFUSED: dict[str, dict[str, Any]] = {
    "roi_align of a list": {"tail": lambda y: y, "pool": boxes_in_a_list},
    "a loop": {"tail": lambda y: torch.stack([row * 2 for row in y])},
    "unbind": {"tail": lambda y: torch.stack(y.unbind(0))},
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_line_that_fixes_the_batch_is_named(name: str) -> None:
    with pytest.raises(
        sptrace.UnsupportedError, match=r"fixes the batch size \(.*test_dynamic_batch.py:\d+: a loop"
    ):
        sptrace.compile(Network(**REFUSED[name]), images(1))


def test_python_is_as_before() -> None:
    length, rows = len, images(2)
    for name in ("len", "int"):
        sptrace.compile(Network(**SERVED[name]), images(1))
    assert len is length
    assert "int" not in globals()
    assert len(rows) == 2
