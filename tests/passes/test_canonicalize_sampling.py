"""Sampling between pixels, against torch.autograd on PyTorch's and torchvision's own ops."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
import torchvision
from helpers.rule_checks import (
    ROUNDED,
    Op,
    SideBySide,
    check_linear,
    check_ordinary,
    compile_pullback,
    numbers,
)
from torch import Tensor, nn

from sptrace.errors import UnsupportedError

MODES, PADDINGS = ("bilinear", "nearest", "bicubic"), ("zeros", "border", "reflection")


class Moved(nn.Module):
    """Samples a picture where the picture says, also far beyond its border."""

    def __init__(self, mode: str, padding: str, align_corners: bool) -> None:
        super().__init__()
        self.options = {"mode": mode, "padding_mode": padding, "align_corners": align_corners}

    def forward(self, image: Tensor) -> Tensor:
        grid = image[:, :, :3, :2].permute(0, 2, 3, 1) * 1.5
        return F.grid_sample(image, grid, **self.options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding", PADDINGS)
def test_grid_sample(mode: str, padding: str) -> None:
    check_ordinary(Op(SideBySide(*(Moved(mode, padding, align) for align in (False, True)))), 2, 4, 5)


def test_grid_sample_of_volumes() -> None:
    for mode, padding in product(MODES[:2], PADDINGS[:2]):
        check_ordinary(
            Op(
                lambda x, mode=mode, padding=padding: F.grid_sample(
                    x[:, None], x[:, :, :2, :3].permute(0, 2, 3, 1)[:, :, None] * 1.5, mode, padding, False
                )
            ),
            3,
            3,
            4,
        )


def test_on_pixels_and_on_the_border() -> None:
    """Where the derivative jumps, PyTorch's own side."""
    picture = numbers(1, 2, 5, 5, seed=3)
    places = torch.tensor([-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0])
    grid = torch.stack(torch.meshgrid(places, places, indexing="ij")).double()[None]
    bodies = [
        lambda x, p, padding=padding: F.grid_sample(
            p.expand(x.shape[0], -1, -1, -1), x.permute(0, 2, 3, 1), "bilinear", padding, True
        )
        for padding in PADDINGS
    ]
    for body in bodies:
        check_ordinary(Op(body, picture), image=torch.cat([grid, grid.flip(1)]))


@pytest.mark.parametrize("align_corners", [False, True])
def test_affine_grid(align_corners: bool) -> None:
    def body(x: Tensor) -> Tensor:
        return F.affine_grid(x.reshape(-1, 2, 3), [x.shape[0], 4, 1, 5], align_corners)

    check_linear(Op(body), 1, 2, 3, tolerance=ROUNDED)
    check_linear(
        Op(lambda x: F.affine_grid(x.reshape(-1, 3, 4), [x.shape[0], 4, 2, 3, 1], align_corners)),
        1,
        3,
        4,
        tolerance=ROUNDED,
    )


@pytest.mark.parametrize(
    ("channels", "parts", "options"),
    [
        (2, 1, {"padding": 1}),
        (2, 2, {"padding": (1, 0), "groups": 2}),
        (2, 1, {"stride": 2, "dilation": (1, 2), "padding": 2, "bias": False}),
    ],
)
def test_deform_conv2d(channels: int, parts: int, options: dict[str, object]) -> None:
    class Deformed(nn.Module):
        def __init__(self, masked: bool) -> None:
            super().__init__()
            steer = {name: given for name, given in options.items() if name not in ("groups", "bias")}
            self.conv = torchvision.ops.DeformConv2d(channels, 4, 3, **options)
            self.offset = nn.Conv2d(channels, parts * 18, 3, **steer)
            self.mask = nn.Conv2d(channels, parts * 9, 3, **steer) if masked else None
            with torch.no_grad():
                for seed, parameter in enumerate(self.parameters()):
                    parameter.copy_(numbers(*parameter.shape, seed=seed) * 0.5)

        def forward(self, image: Tensor) -> Tensor:
            mask = None if self.mask is None else self.mask(image).sigmoid()
            return self.conv(image, self.offset(image), mask)

    check_ordinary(Op(SideBySide(Deformed(True), Deformed(False))), channels, 4, 5)


BOXES = torch.tensor([[0.0, 0.0, 5.0, 3.5], [1.0, 2.0, 7.0, 9.0]])


def boxes_of_all(x: Tensor) -> Tensor:
    number = torch.arange(x.shape[0]).repeat_interleave(2)[:, None]
    return torch.cat([number.to(x.dtype), BOXES.to(x.dtype).repeat(x.shape[0], 1)], 1)


def test_roi_align() -> None:
    def body(x: Tensor) -> Tensor:
        read = torchvision.ops.roi_align(x, boxes_of_all(x), (2, 3), 0.5, 2, True)
        return read.reshape(x.shape[0], -1)

    check_linear(Op(body), 2, 4, 5, tolerance=ROUNDED)


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        (lambda x: boxes_of_all(x) + x.mean(), "computed from the image"),
        (lambda x: boxes_of_all(x).flip(0), "picture after picture"),
    ],
)
def test_other_boxes_are_refused(boxes: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        compile_pullback(
            Op(lambda x: torchvision.ops.roi_align(x, boxes(x), 2).reshape(x.shape[0], -1)),
            numbers(2, 2, 4, 5),
        )
