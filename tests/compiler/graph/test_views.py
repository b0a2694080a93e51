"""Writing through views, as heads of detectors and old attention code do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.explained import assert_gradient
from helpers.tails import Between
from torch import Tensor, nn
from torchvision import transforms


class Detector(nn.Module):
    """Two scales of cells decoded as YOLOv5 and v7 do, in place or not; the grid is kept from call to call."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        generator = torch.Generator().manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 8, 2, 2)
        self.heads = nn.ModuleList([nn.Conv2d(8, 16, 1), nn.Conv2d(8, 16, 1)])
        for data in self.parameters():
            data.data.copy_(torch.randn(data.shape, generator=generator) / 3)
        self.stride = torch.tensor([4.0, 8.0])
        self.grids = [torch.empty(0), torch.empty(0)]
        self.register_buffer("anchors", torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        maps = [torch.tanh(self.first(image))]
        maps.append(torch.tanh(self.second(maps[0])))
        found = []
        for level in range(2):
            x = self.heads[level](maps[level])
            count, _, rows, columns = x.shape
            x = x.view(count, 2, 8, rows, columns).permute(0, 1, 3, 4, 2).contiguous()
            if self.grids[level].shape[2:4] != x.shape[2:4]:
                self.grids[level] = self.grid(rows, columns)
            y = x.sigmoid()
            anchors = self.anchors.view(1, 2, 1, 1, 2)
            if self.in_place:
                y[..., 0:2] = (y[..., 0:2] * 2 - 0.5 + self.grids[level]) * self.stride[level]
                y[..., 2:4] = (y[..., 2:4] * 2) ** 2 * anchors
            else:
                places = (y[..., 0:2] * 2 - 0.5 + self.grids[level]) * self.stride[level]
                y = torch.cat([places, (y[..., 2:4] * 2) ** 2 * anchors, y[..., 4:]], -1)
            found.append(y.view(count, -1, 8))
        boxes = torch.cat(found, 1)
        return (boxes[..., 4:5] * boxes[..., 5:]).mean(1) + boxes[..., :4].mean((1, 2))[:, None] / 100

    def grid(self, rows: int, columns: int) -> Tensor:
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        return torch.stack([x, y], 2).view(1, 1, rows, columns, 2).to(self.anchors.dtype)


@pytest.mark.parametrize("in_place", [False, True])
def test_detectors(in_place: bool) -> None:
    wanted = Detector(in_place=False).double()
    wanted.stride = wanted.stride.double()
    network = Detector(in_place)
    assert_gradient(network, wanted)
    assert [grid.numel() for grid in network.grids] == [0, 0]


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, 1)
    first.add_(1)
    second.mul_(2)
    return torch.cat([first, second], 1)


def queries(x: Tensor) -> Tensor:
    q, k = torch.stack([x, x * 2]).unbind(0)
    q *= 0.5
    return q * k


def stretches(x: Tensor) -> Tensor:
    y = x.clone()
    _, last = y.split([3, 5], 1)
    last += last * last
    return y


def out(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    torch.mul(x, 2, out=y)
    return y.sin()


def views_of_views(x: Tensor) -> Tensor:
    y = x * 1
    y[:, 2:6][:, 1:3][..., 2:7].mul_(3)
    return y * y


def siblings(x: Tensor) -> Tensor:
    y = x * 1
    low, high = y[:, :4], y[:, 2:6]
    low.mul_(3)
    return torch.cat([low, high], 1) * y


def flat(x: Tensor) -> Tensor:
    y = x * 1
    y.view(y.shape[0], -1)[:, 10:100] *= 2
    return y * y


def heads(x: Tensor) -> Tensor:
    """Attention whose queries are scaled in place, as a part of the three that one layer gives."""
    count, channels = x.shape[:2]
    parts = torch.cat([x, x * 2, x + 1], 1).reshape(count, 3, channels, -1).permute(1, 0, 3, 2)
    q, k, v = parts[0], parts[1], parts[2]
    q *= channels**-0.5
    return ((q @ k.mT).softmax(-1) @ v).mT.reshape(x.shape)


def joined(x: Tensor) -> Tensor:
    return torch.cat([x[:, :4] + 1, x[:, 4:] * 2], 1)


WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "halves": (halves, joined),
    "queries": (queries, lambda x: x * x),
    "stretches": (stretches, lambda x: torch.cat([x[:, :3], x[:, 3:] + x[:, 3:] ** 2], 1)),
    "out": (out, lambda x: (2 * x).sin()),
    "views of views": (views_of_views, views_of_views),
    "siblings": (siblings, siblings),
    "flat": (flat, flat),
    "heads": (heads, heads),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_gradients(name: str) -> None:
    written, plain = WRITTEN[name]
    assert_gradient(Between(written), Between(plain).double().logits)


class Blurred(Between):
    """Draws its width from a range that holds one number, into memory that nobody reads."""

    def __init__(self) -> None:
        super().__init__(torch.tanh)
        self.blur: Any = transforms.GaussianBlur(3, sigma=(1.0, 1.0))
        self.eval()

    def logits(self, image: Tensor) -> Tensor:
        return super().logits(self.blur(image))


def test_blur() -> None:
    assert_gradient(Blurred(), Blurred().double().logits)
