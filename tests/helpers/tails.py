"""A small network whose middle, or whose end, is a function of the test's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Tail(nn.Module):
    """A small network whose logits go through a function."""

    def __init__(self, tail: Callable[[Tensor], Any] = lambda y: y) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        for data in self.parameters():
            data.data.copy_(torch.randn(data.shape, generator=generator) / 3)
        self.tail = tail
        self.eval()

    def logits(self, image: Tensor) -> Tensor:
        answer: Tensor = self.fc(torch.tanh(self.conv(image)).mean((2, 3)))
        return answer

    def forward(self, image: Tensor) -> Any:
        return self.tail(self.logits(image))


def plain(image: Tensor) -> Tensor:
    """`Tail` in float64."""
    return Tail().double().logits(image)


class Between(Tail):
    """`Tail` with a function in place of its tanh."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.between = between

    def logits(self, image: Tensor) -> Tensor:
        answer: Tensor = self.fc(self.between(self.conv(image)).mean((2, 3)))
        return answer
