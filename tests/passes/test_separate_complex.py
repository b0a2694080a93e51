"""Complex numbers and Fourier transforms against torch.autograd in float64."""

from __future__ import annotations

import pytest
import torch
from helpers.explained import assert_gradient
from helpers.rule_checks import ROUNDED, check_all, numbers
from helpers.small_networks import images, small
from torch import Tensor, nn

import sptrace
from sptrace.errors import UnsupportedError


def test_transforms() -> None:
    check_all(
        numbers(2, 3, 4, 5, seed=1).double(),
        lambda x: torch.fft.fft2(x).real + torch.fft.fft2(x, norm="ortho").imag,
        lambda x: torch.fft.rfftn(x, dim=(1, 3), norm="forward").abs(),
        lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * (1 + 2j), s=(4, 5)),
        lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=2), n=7, dim=2),
        lambda x: torch.view_as_real(torch.fft.ifft(torch.fft.fft(x, n=7) / (2 - 1j))),
        lambda x: torch.fft.ihfft(x).imag,
        tolerance=ROUNDED,
    )


def test_arithmetic() -> None:
    image = numbers(2, 4, 3, 5, seed=1).double()

    def z(x: Tensor) -> Tensor:
        return torch.complex(x[:, :2], x[:, 2:])

    check_all(
        image,
        lambda x: torch.view_as_real(z(x) * z(x).conj() - 2j * z(x) + x[:, :2]),
        lambda x: torch.view_as_real(z(x) / (z(x) + 3)).flip(3),
        lambda x: torch.view_as_real(torch.exp(0.3 * z(x)))[..., 0],
        lambda x: (z(x) @ z(x).mT).abs(),
        lambda x: torch.einsum("ncij,ncik->ncjk", z(x), z(x)).imag,
        lambda x: torch.view_as_real(torch.cat([z(x), 1 / z(x)], 1)),
        lambda x: torch.view_as_real(torch.polar(x[:, :2].abs() + 0.1, x[:, 2:]).sum(1)),
        lambda x: (z(x) ** 2).real,
        tolerance=1e-9,  # quotients by numbers near 0 leave fewer digits
    )


def test_size_of_0_has_no_cotangent() -> None:
    image = numbers(2, 2, 3, 4, seed=1).double()
    image[:, :, 1] = 0.0
    check_all(image, lambda x: torch.complex(x[:, :1], x[:, 1:]).abs())


class SpectralConvolution(nn.Module):
    """As in Fourier neural operators: complex weights for the lowest frequencies, into memory that is filled."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.complex(numbers(3, 4, 5, 5), numbers(3, 4, 5, 5, seed=1)))
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        """Logits."""
        spectrum = torch.fft.rfft2(image)
        out = torch.zeros(image.shape[0], 4, 16, 9, dtype=spectrum.dtype, device=image.device)
        out[:, :, :5, :5] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :5, :5], self.weight)
        return self.head(torch.tanh(torch.fft.irfft2(out, s=(16, 16))).mean((2, 3)))


def test_spectral_convolution() -> None:
    network = SpectralConvolution().eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    head = nn.Linear(4, 3).double()
    head.load_state_dict(network.head.state_dict())

    def plain(x: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x)
        low = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :5, :5], network.weight.to(torch.complex128))
        whole = torch.nn.functional.pad(low, (0, 4, 0, 11))
        return head(torch.tanh(torch.fft.irfft2(whole, s=(16, 16))).mean((2, 3)))

    assert_gradient(network, plain)


def test_what_is_not_covered_is_refused() -> None:
    network = small(lambda self, x: torch.linalg.vector_norm(torch.fft.fft2(x).sin().real, dim=1))
    with pytest.raises(UnsupportedError, match="of complex numbers has no pullback"):
        sptrace.compile(network, images(1, 8), program="gradient")
