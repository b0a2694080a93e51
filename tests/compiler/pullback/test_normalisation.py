"""Norms with frozen statistics against affine maps written out row by row; with rule hard against autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_jacobians, check_linear, check_ordinary, numbers, randomized
from torch import Tensor, nn

from sptrace.compiler.reference.eager import reference

Scale = Callable[[Tensor], Tensor]
"""The diagonal of the frozen map at one picture [C, H, W]."""


class LayerNorm2d(nn.LayerNorm):
    """As torchvision and timm have it: over the channels of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def spread(x: Tensor, groups: list[Tensor], eps: float, centred: bool = True) -> Tensor:
    """1 / sqrt(variance + eps) for each number, from the groups of indices that share statistics."""
    flat, result = x.flatten(), torch.empty(x.numel(), dtype=torch.float64)
    for group in groups:
        row = [float(flat[index]) for index in group]
        mean = sum(row) / len(row) if centred else 0.0
        variance = sum((number - mean) ** 2 for number in row) / len(row)
        result[group] = (variance + eps) ** -0.5
    return result.reshape(x.shape)


def indices(*sizes: int) -> Tensor:
    return torch.arange(torch.Size(sizes).numel()).reshape(sizes)


def check_frozen(norm: nn.Module | Callable[..., Tensor], scale: Scale, *constants: Tensor) -> None:
    image = numbers(2, 4, 3, 5, seed=3).double()
    jacobians = torch.stack([torch.diag(scale(picture).flatten()) for picture in image])
    check_jacobians(Op(norm, *constants), image, jacobians)
    check_ordinary(Op(norm, *constants), 4, 3, 5)


def test_layer_norm_of_rows() -> None:
    norm = randomized(nn.LayerNorm(5))
    rows = list(indices(12, 5))
    check_frozen(norm, lambda x: spread(x, rows, 1e-5) * norm.weight.detach().double())


def test_layer_norm_of_whole_pictures_without_weights() -> None:
    norm = nn.LayerNorm([4, 3, 5], eps=0.1, elementwise_affine=False)
    check_frozen(norm, lambda x: spread(x, [torch.arange(60)], 0.1))


def test_layer_norm_without_bias() -> None:
    norm = randomized(nn.LayerNorm((3, 5), bias=False))
    rows = list(indices(4, 15))
    check_frozen(norm, lambda x: spread(x, rows, 1e-5) * norm.weight.detach().double())


def test_layer_norm_over_channels() -> None:
    norm = randomized(LayerNorm2d(4, eps=1e-6))
    columns = list(indices(4, 15).T)
    check_frozen(norm, lambda x: spread(x, columns, 1e-6) * norm.weight.detach().double()[:, None, None])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(groups: int, affine: bool) -> None:
    norm = randomized(nn.GroupNorm(groups, 4, affine=affine))
    weight = norm.weight.detach().double()[:, None, None] if affine else 1.0
    rows = list(indices(groups, 60 // groups))
    check_frozen(norm, lambda x: spread(x, rows, 1e-5) * weight)


def test_group_norm_of_a_sequence() -> None:
    norm = randomized(nn.GroupNorm(2, 4))
    weight = norm.weight.detach().double()[:, None, None]
    rows = list(indices(2, 30))
    body = nn.Sequential(nn.Flatten(2), norm, nn.Unflatten(2, (3, 5)))
    check_frozen(body, lambda x: spread(x, rows, 1e-5) * weight)


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm(affine: bool) -> None:
    norm = randomized(nn.InstanceNorm2d(4, affine=affine))
    weight = norm.weight.detach().double()[:, None, None] if affine else 1.0
    rows = list(indices(4, 15))
    check_frozen(norm, lambda x: spread(x, rows, 1e-5) * weight)


def test_instance_norm_with_running_statistics_is_a_batch_norm() -> None:
    norm = randomized(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)).eval()
    norm.running_var.fill_(0.75)
    norm.running_mean.fill_(0.5)
    norm.weight.data = torch.tensor([1.0, 2.0, -1.0, 0.5])
    factor = norm.weight.detach().double()[:, None, None] * (0.75 + 1e-5) ** -0.5
    image = numbers(2, 4, 3, 5).double()
    jacobian = torch.diag(factor.expand(4, 3, 5).flatten())
    check_jacobians(Op(norm), image, torch.stack([jacobian] * 2), tolerance=1e-6)


@pytest.mark.parametrize("eps", [1e-3, None])
def test_rms_norm(eps: float | None) -> None:
    weight = numbers(5, seed=7)
    rows = list(indices(12, 5))
    frozen = 1e-3 if eps else float(torch.finfo(torch.float32).eps)
    image = numbers(2, 4, 3, 5, seed=3).double()
    scales = [spread(x, rows, frozen, centred=False) * weight.double() for x in image]
    op = Op(lambda x, w: F.rms_norm(x, [5], w, eps=eps or frozen), weight)
    check_jacobians(op, image, torch.stack([torch.diag(scale.flatten()) for scale in scales]))
    check_ordinary(op, 4, 3, 5)


class Beside(nn.Module):
    """What a module adds to its input."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.module(x)
        return result


@pytest.mark.parametrize("sizes", [(1,), (1, 1)])
def test_a_norm_of_single_numbers_is_a_constant(sizes: tuple[int, ...]) -> None:
    network = Op(Beside(randomized(nn.LayerNorm(sizes))))
    check_linear(network, 4, 1, 1)
    image = numbers(2, 4, 1, 1)
    attribution, _, _ = reference(
        network, image, torch.tensor([0, 3]), rules={"layer_norm": ("frozen", None)}
    )
    assert attribution.flatten(1).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
