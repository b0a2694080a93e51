"""Memory that forward allocates, and fills with what depends on the image."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.explained import assert_gradient
from helpers.tails import Between
from torch import Tensor


def shifted(x: Tensor) -> Tensor:
    """Channels moved by a place to either side, as the temporal shift module does."""
    y, out = torch.tanh(x), torch.zeros_like(x)
    out[:, :2, 1:] = y[:, :2, :-1]
    out[:, 2:4, :-1] = y[:, 2:4, 1:]
    out[:, 4:] = y[:, 4:]
    return out * out


def shifted_by_cat(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    parts = [F.pad(y[:, :2, :-1], (0, 0, 1, 0)), F.pad(y[:, 2:4, 1:], (0, 0, 0, 1)), y[:, 4:]]
    return torch.cat(parts, dim=1) ** 2


def padded(x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    out = x.new_full((count, channels, height + 2, width + 3), 0.5)
    out[:, :, 1:-1, 1:-2].copy_(x)
    return torch.sin(out)


def padded_and_added(x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], x.shape[1], x.shape[2] + 2, x.shape[3] + 3, dtype=x.dtype) + 0.5
    out[:, :, 1:-1, 1:-2] += x - 0.5
    return torch.sin(out)


def padded_by_pad(x: Tensor) -> Tensor:
    return torch.sin(F.pad(x, (1, 2, 1, 1), value=0.5))


def summed(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for power in range(1, 4):
        out += x**power
    return torch.sin(out)


def channel_by_channel(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for channel in range(x.shape[1]):
        out[:, channel] = torch.tanh(x[:, channel]) * channel
    return out


def empty(x: Tensor) -> Tensor:
    out = torch.empty(x.shape[0], 8, *x.shape[2:])
    for channel in range(8):
        out[:, channel] = torch.tanh(x[:, channel]) * channel
    return out


def empty_halves(x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, ::2], out[:, 1::2] = torch.sin(x[:, ::2]), torch.cos(x[:, 1::2])
    return out * out


def woven(x: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], x.shape[1], 2 * x.shape[2], x.shape[3])
    out[:, :, 0::2], out[:, :, 1::2] = torch.sin(x), torch.cos(x)
    return out**3


@pytest.mark.parametrize(
    ("filled", "plain"),
    [
        (shifted, shifted_by_cat),
        (padded, padded_by_pad),
        (padded_and_added, padded_by_pad),
        (summed, lambda x: torch.sin(x + x**2 + x**3)),
        (channel_by_channel, lambda x: torch.tanh(x) * torch.arange(8)[:, None, None]),
        (empty, lambda x: torch.tanh(x) * torch.arange(8)[:, None, None]),
        (empty_halves, lambda x: torch.stack([x[:, ::2].sin(), x[:, 1::2].cos()], 2).flatten(1, 2) ** 2),
        (woven, lambda x: torch.stack([x.sin(), x.cos()], 3).flatten(2, 3) ** 3),
    ],
    ids=["shift", "pad", "pad and add", "sum", "channels", "empty", "empty halves", "woven"],
)
def test_gradients(filled: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor]) -> None:
    assert_gradient(Between(filled), Between(plain).double().logits)
