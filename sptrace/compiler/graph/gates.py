"""Gating nonlinearities as single nodes: forward hard, backward soft.

The pass `soften` puts a call to one of these functions where the network had an activation, a max pool, a norm with
statistics of its own, or a product with an attention matrix. Computing one gives exactly the network's own value; the
keywords `rule` and `tau` say how the pullback treats it, and only the rules in `pullback` read them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sptrace.artifact.softening import Temperature

SOFTPLUS_IS_LINEAR = 16.0
"""From here on float32 sees no difference between softplus(z) and z; a lower threshold makes it jump."""


def relu(z: Tensor, *, rule: str, tau: Temperature) -> Tensor:
    """max(z, 0)."""
    return torch.relu(z)


def hardtanh(z: Tensor, low: float, high: float, *, rule: str, tau: Temperature) -> Tensor:
    """z clamped to [low, high]; ReLU6 is [0, 6]."""
    return torch.nn.functional.hardtanh(z, low, high)


def max_pool2d(
    z: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    ceil_mode: bool,
    *,
    rule: str,
    tau: Temperature,
) -> Tensor:
    """The largest value of each window; z is [N, C, H, W]."""
    return torch.nn.functional.max_pool2d(z, kernel, stride, padding, dilation, ceil_mode)


def max_of_windows(z: Tensor, places: list[list[list[int]]], *, rule: str, tau: Temperature) -> Tensor:
    """The largest value of each window, of whatever size: for each of the last dimensions `places` lists their cells.

    A cell of -1 is padding, which the softmax counts as 0; -2 is none, where a window is smaller than others.
    """
    for dim, windows in zip(range(-len(places), 0), places, strict=True):
        index = torch.tensor(filled(windows))
        cells = z.index_select(dim, index.flatten())
        z = cells.reshape(*z.shape[: z.ndim + dim], *index.shape, *z.shape[z.ndim + dim + 1 :]).amax(dim)
    return z


def filled(windows: list[list[int]]) -> list[list[int]]:
    """The windows with a cell of their own in place of those that are none: it changes no maximum."""
    return [
        [cell if cell >= 0 else next(each for each in window if each >= 0) for cell in window]
        for window in windows
    ]


def amax(z: Tensor, dims: list[int], keepdim: bool, *, rule: str, tau: Temperature) -> Tensor:
    """The largest number over `dims`: a max pool whose windows are rows, channels, or the maps of a stack."""
    return torch.amax(z, dims, keepdim)


def leaky_relu(z: Tensor, slope: float | Tensor, *, rule: str, tau: Temperature) -> Tensor:
    """The z where z > 0, else slope * z; the slope of a PReLU is a tensor that broadcasts over z."""
    return torch.where(z > 0, z, slope * z)


def elu(z: Tensor, alpha: float, scale: float, input_scale: float, *, rule: str, tau: Temperature) -> Tensor:
    """Scale * z where z > 0, else scale * alpha * (exp(input_scale * z) - 1): ELU, SELU and CELU."""
    answer: Tensor = torch.ops.aten.elu(z, alpha, scale, input_scale)
    return answer


def silu(z: Tensor, sharpness: float, *, rule: str, tau: Temperature) -> Tensor:
    """The product z * sigma(sharpness * z): SiLU is sharpness 1, quick GELU 1.702."""
    return z * torch.sigmoid(sharpness * z) if sharpness != 1 else torch.nn.functional.silu(z)


def gelu(z: Tensor, approximate: str, *, rule: str, tau: Temperature) -> Tensor:
    """The product z * Phi(z), or its approximation by tanh."""
    return torch.nn.functional.gelu(z, approximate=approximate)


def erf_gelu(z: Tensor, *, rule: str, tau: None) -> Tensor:
    """The product z * (1 + erf(z)): sqrt 2 times the GELU of sqrt 2 z. No network has it; passes make it of a GELU."""
    return z * (1 + torch.erf(z))


def hardswish(z: Tensor, *, rule: str, tau: Temperature) -> Tensor:
    """The product z * min(1, max(0, z / 6 + 1 / 2))."""
    return torch.nn.functional.hardswish(z)


def mish(z: Tensor, *, rule: str, tau: Temperature) -> Tensor:
    """The product z * tanh(log(1 + exp(z)))."""
    return torch.nn.functional.mish(z)


def softplus(z: Tensor, beta: float, threshold: float, *, rule: str, tau: Temperature) -> Tensor:
    """log(1 + exp(beta * z)) / beta, and z itself where beta * z exceeds the threshold."""
    return torch.nn.functional.softplus(z, beta, threshold)


def glu(x: Tensor, dim: int, *, rule: str, tau: Temperature) -> Tensor:
    """The product a * sigma(b) of the halves a and b of x."""
    return torch.nn.functional.glu(x, dim)


def layer_norm(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    rule: str,
    tau: None,
) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias, the statistics over the last dimensions."""
    return torch.nn.functional.layer_norm(x, normalized_shape, weight, bias, eps)


def inverse_deviation(x: Tensor, normalized_shape: list[int], eps: float) -> Tensor:
    """1 / sqrt(variance + eps) over the last dimensions, which stay with size 1: what a layer norm multiplies by.

    No gate, but what the pullback of one needs; a file has it from the norm itself.
    """
    dims = list(range(-len(normalized_shape), 0))
    return torch.rsqrt(x.var(dims, correction=0, keepdim=True) + eps)


def root(x: Tensor, order: float) -> Tensor:
    """The root of numbers that are not negative, sums of powers: of a norm, a standard deviation, a pool of powers.

    No gate: it is x^(1 / order). But where that has an infinite derivative, at 0, PyTorch gives norms and deviations 0.
    """
    return torch.sqrt(x) if order == 2 else torch.pow(x, 1 / order)


def extreme_size(x: Tensor, dims: list[int], keepdim: bool, largest: bool) -> Tensor:
    """The norm of order infinity, or -infinity: the largest or smallest absolute value. No gate, but a length."""
    norm: Tensor = torch.linalg.vector_norm(x, math.inf if largest else -math.inf, dims, keepdim)
    return norm


def first_maximum(x: Tensor, dim: int, keepdim: bool) -> Tensor:
    """The values of torch.max(x, dim): of several that are equally large the first one counts, amax shares."""
    return torch.amax(x, dim, keepdim)


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, *, rule: str, tau: None
) -> Tensor:
    """The same with statistics over each group of channels; an instance norm has a group for each channel."""
    return torch.nn.functional.group_norm(x, groups, weight, bias, eps)


def rms_norm(
    x: Tensor, normalized_shape: list[int], weight: Tensor | None, eps: float, *, rule: str, tau: None
) -> Tensor:
    """The quotient x / sqrt(mean of x^2 + eps) * weight, the mean over the last dimensions."""
    return torch.nn.functional.rms_norm(x, normalized_shape, weight, eps)


def attend(
    matrix: Tensor, softened: Tensor, value: Tensor, left: bool, *, rule: str, tau: Temperature
) -> Tensor:
    """The product of an attention matrix and a value: matrix @ value if `left`, else value @ matrix.

    `softened` is the matrix at another temperature, which only the pullback reads.
    """
    return matrix @ value if left else value @ matrix
