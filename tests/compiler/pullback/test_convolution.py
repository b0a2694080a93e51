"""Convolutions, their transposes, and the batch norms that vanish into them, against their matrices."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import ROUNDED, Op, SideBySide, check_linear, compile_pullback, numbers, randomized
from torch import Tensor, nn

from sptrace.errors import UnsupportedError

# --- Convolutions ---


@pytest.mark.parametrize("kernel", [1, 3, (2, 3)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_convolution(stride: int, dilation: int, kernel: int | tuple[int, int]) -> None:
    convolutions = [nn.Conv2d(2, 3, kernel, stride, padding, dilation) for padding in range(4)]
    check_linear(Op(randomized(SideBySide(*convolutions))), 2, 7, 8)


@pytest.mark.parametrize(
    "convolution",
    [
        pytest.param(nn.Conv2d(4, 6, 3, groups=2, bias=False), id="two groups"),
        pytest.param(nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2), id="two groups, stride 2"),
        pytest.param(nn.Conv2d(4, 4, 3, padding=1, groups=4), id="depth-wise"),
        pytest.param(
            nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4, bias=False), id="depth-wise, stride 2"
        ),
        pytest.param(nn.Conv2d(4, 8, 5, padding=2, groups=4), id="depth-wise, two outputs a channel"),
        pytest.param(nn.Conv2d(4, 4, 1, groups=4), id="depth-wise, 1x1"),
        pytest.param(nn.Conv2d(4, 2, 3, stride=(1, 3), padding=(2, 0), dilation=(2, 1)), id="per dimension"),
        pytest.param(nn.Conv2d(4, 2, (1, 5), padding=(0, 2)), id="one row"),
        pytest.param(nn.Conv2d(4, 2, (6, 5)), id="the whole picture"),
        pytest.param(nn.Conv2d(4, 2, 3, stride=5), id="stride beyond the kernel"),
    ],
)
def test_convolution_with_groups_and_shapes(convolution: nn.Module) -> None:
    check_linear(Op(randomized(convolution)), 4, 6, 5)


@pytest.mark.parametrize(
    ("padding", "options"),
    [
        ("valid", {"kernel_size": 3, "stride": 2}),
        ("same", {"kernel_size": 3}),
        ("same", {"kernel_size": 4}),
        ("same", {"kernel_size": (2, 3), "dilation": (3, 2)}),
        ("same", {"kernel_size": (3, 2), "groups": 2, "bias": False}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_padding_by_word(padding: str, options: dict[str, Any]) -> None:
    convolution = nn.Conv2d(2, 4, padding=padding, **options)
    check_linear(Op(randomized(convolution)), 2, 5, 6)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [1, (0, 2), "same"], ids=str)
def test_padding_by_mode(padding: str | int | tuple[int, int], mode: Any) -> None:
    convolution = nn.Conv2d(2, 3, (4, 3), padding=padding, padding_mode=mode)
    check_linear(Op(randomized(convolution)), 2, 5, 6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2, "padding": 1},
        {"stride": 3, "padding": 2, "dilation": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 3},
        {"padding": "valid"},
    ],
    ids=str,
)
def test_convolution_of_a_sequence(options: dict[str, Any]) -> None:
    def body(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv1d(image.flatten(2), weight, bias, **options)

    check_linear(Op(body, numbers(4, 2, 4), numbers(4)), 2, 3, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": (1, 2, 2), "padding": (1, 0, 2)},
        {"stride": 2, "padding": 1, "dilation": (1, 2, 1), "groups": 2},
        {"padding": "same"},
    ],
    ids=str,
)
def test_convolution_of_a_volume(options: dict[str, Any]) -> None:
    def body(image: Tensor, weight: Tensor) -> Tensor:
        return F.conv3d(image.reshape(-1, 2, 3, 5, 4), weight, **options)

    check_linear(Op(body, numbers(2, 2 // options.get("groups", 1), 3, 3, 2)), 6, 5, 4)


def test_weights_that_are_read_twice() -> None:
    convolution = randomized(nn.Conv2d(2, 2, 3, padding=1))
    check_linear(Op(nn.Sequential(convolution, convolution)), 2, 5, 4)


def test_weights_computed_from_the_image_are_refused() -> None:
    op = Op(lambda image: F.conv2d(image, image.mean((0, 2, 3)).reshape(1, 3, 1, 1)))
    with pytest.raises(UnsupportedError, match=r"rule for aten\.conv2d\.default does not cover its input"):
        compile_pullback(op, torch.zeros(2, 3, 4, 4))


def test_a_picture_without_a_batch_is_refused() -> None:
    op = Op(
        lambda image, weight: image.flatten(1) + F.conv2d(image[0], weight).flatten(), numbers(3, 3, 1, 1)
    )
    with pytest.raises(UnsupportedError, match=r"aten\.conv2d\.default .* give it a batch dimension"):
        compile_pullback(op, torch.zeros(2, 3, 4, 4))


# --- Transposed convolutions ---


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_transposed_convolution(stride: int, dilation: int) -> None:
    extra = range(min(3, max(stride, dilation)))  # PyTorch's own limit on output_padding
    convolutions = [
        nn.ConvTranspose2d(
            2, 2, (3, 2), stride, padding, output_padding, dilation=dilation, bias=padding != 1
        )
        for padding, output_padding in product([0, 1, 2], extra)
    ]
    check_linear(Op(randomized(SideBySide(*convolutions))), 2, 4, 6)


@pytest.mark.parametrize(
    "convolution",
    [
        pytest.param(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), id="two groups"),
        pytest.param(nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4, bias=False), id="depth-wise"),
        pytest.param(nn.ConvTranspose2d(4, 2, 1, stride=3), id="stride beyond the kernel"),
        pytest.param(
            nn.ConvTranspose2d(4, 2, 3, (3, 2), (0, 2), (2, 0), dilation=(1, 2)), id="per dimension"
        ),
        pytest.param(
            nn.ConvTranspose2d(4, 2, 3, 1, (0, 2), (2, 0), dilation=(3, 1)),
            id="output padding in one dimension",
        ),
    ],
)
def test_transposed_convolution_with_groups_and_shapes(convolution: nn.Module) -> None:
    check_linear(Op(randomized(convolution)), 4, 4, 5)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}], ids=str)
def test_transposed_convolution_of_a_sequence(options: dict[str, Any]) -> None:
    def body(image: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose1d(image.flatten(2), weight, **options)

    check_linear(Op(body, numbers(2, 3, 3)), 2, 3, 4)


@pytest.mark.parametrize(
    "options", [{}, {"stride": (1, 2, 2), "padding": 1, "output_padding": (0, 1, 1)}], ids=str
)
def test_transposed_convolution_of_a_volume(options: dict[str, Any]) -> None:
    def body(image: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose3d(image.unsqueeze(1), weight, **options)

    check_linear(Op(body, numbers(1, 2, 3, 3, 2)), 3, 3, 4)


# --- Batch norms ---


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(nn.BatchNorm2d(3), id="2d"),
        pytest.param(nn.BatchNorm2d(3, affine=False, eps=0.1), id="without affine"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(60)), id="1d of a vector"),
        pytest.param(nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(3)), id="1d of a sequence"),
        pytest.param(nn.Sequential(nn.Unflatten(1, (1, 3)), nn.BatchNorm3d(1)), id="3d"),
        pytest.param(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), id="after a convolution"),
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 4, 2, padding="same", bias=False), nn.BatchNorm2d(4)),
            id="after a convolution padded by word, without bias",
        ),
        pytest.param(
            nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, groups=3), nn.BatchNorm2d(6, affine=False)),
            id="without affine, after a convolution with groups",
        ),
        pytest.param(
            nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3, padding=1)), id="before a convolution"
        ),
        pytest.param(
            nn.Sequential(nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)), id="after a transposed convolution"
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_batch_norm(body: nn.Module) -> None:
    check_linear(Op(randomized(body)), 3, 4, 5, tolerance=ROUNDED)


def test_batch_norm_after_a_convolution_that_is_read_elsewhere_too() -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, image: Tensor) -> Tensor:
            image = self.conv(image)
            return image - self.norm(image)  # type: ignore[no-any-return]

    check_linear(Op(randomized(Body())), 3, 4, 5, tolerance=ROUNDED)
