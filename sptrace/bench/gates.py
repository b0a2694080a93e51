"""Gates with a hard forward and a soft backward, as autograd functions: what the eager peer is built from.

Written to be fast, unlike `reference.eager`, against which they are tested. Each saves for the backward pass
no more than its rule needs. The rules are those of arXiv 2507.22832 and of `sptrace.artifact.softening`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
Gate = Callable[..., Any]


def _phi_times(z: Tensor, tau: float, v: Tensor) -> Tensor:
    """v Phi(z / tau), in as few passes over the memory as eager PyTorch allows."""
    opened = torch.erf(z * (1 / (tau * math.sqrt(2))))
    return torch.addcmul(v, opened, v).mul_(0.5)


class _ReLU(torch.autograd.Function):
    """v Phi(z / tau)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.tau = tau
        return torch.relu(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return _phi_times(z, ctx.tau, v), None


class _SigmoidReLU(torch.autograd.Function):
    """v sigma(z / tau): the method's older form."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.tau = tau
        return torch.relu(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return torch.sigmoid(z / ctx.tau).mul_(v), None


class _GuidedReLU(torch.autograd.Function):
    """max(v, 0) where z > 0; the output is enough to know where."""

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        y = torch.relu(z)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.relu(v).mul_(y > 0)


class _ReLU6(torch.autograd.Function):
    """v Phi(z / tau) min(1, high / max(z, high))."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float, high: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.tau, ctx.high = tau, high
        return z.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        above = z.clamp(min=ctx.high).reciprocal_().mul_(ctx.high)
        return _phi_times(z, ctx.tau, v).mul_(above), None, None


class _GELU(torch.autograd.Function):
    """v Phi(z / tau), Phi in the form that the network itself uses."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float, approximate: str) -> Tensor:
        ctx.save_for_backward(z)
        ctx.tau, ctx.approximate = tau, approximate
        return F.gelu(z, approximate=approximate)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        if ctx.approximate == "none":
            return _phi_times(z, ctx.tau, v), None, None
        t = z / ctx.tau
        opened = torch.tanh(math.sqrt(2 / math.pi) * t * (1 + 0.044715 * t * t))
        return torch.addcmul(v, opened, v).mul_(0.5), None, None


class _SiLU(torch.autograd.Function):
    """v sigma(z / tau)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.tau = tau
        return F.silu(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return torch.sigmoid(z / ctx.tau).mul_(v), None


class _Hardswish(torch.autograd.Function):
    """v clamp((z / tau + 3) / 6, 0, 1)."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.tau = tau
        return F.hardswish(z)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return F.hardsigmoid(z / ctx.tau).mul_(v), None


class _LayerNorm(torch.autograd.Function):
    """Statistics carry no cotangent: v weight / sqrt(var + eps). Nothing of the input's size is saved."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        y, _, scale = torch.native_layer_norm(z, shape, weight, bias, eps)
        ctx.save_for_backward(scale, weight)
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        scale, weight = ctx.saved_tensors
        scaled = v * scale
        return scaled if weight is None else scaled.mul_(weight), None, None, None, None


class _MaxPool(torch.autograd.Function):
    """v spread over its window by softmax(window / tau); padded cells count as 0, and drop what they get.

    Made with unfold, softmax and fold, one channel at a time, which eager PyTorch does faster than shifted slices.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, tau: float, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, ceil: bool
    ) -> Tensor:
        y = F.max_pool2d(z, kernel, stride, padding, dilation, ceil)
        ctx.save_for_backward(z)
        ctx.window = tau, kernel, stride, padding, dilation
        return y

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        (z,) = ctx.saved_tensors
        tau, kernel, stride, (top, left), dilation = ctx.window
        height, width = z.shape[-2:]
        rows, columns = (
            (count - 1) * s + d * (k - 1) + 1
            for count, s, d, k in zip(v.shape[-2:], stride, dilation, kernel, strict=True)
        )
        # What the windows cover: it may end before the picture does, or after it.
        beyond = [left, columns - width - left, top, rows - height - top]
        canvas = F.pad(z, beyond) if any(beyond) else z
        cells = F.unfold(canvas.reshape(-1, 1, rows, columns), kernel, dilation, stride=stride)
        spread = torch.softmax(cells.mul_(1 / tau), 1).mul_(v.reshape(len(cells), 1, -1))
        picture = F.fold(spread, (rows, columns), kernel, dilation, stride=stride).view(canvas.shape)
        inside = F.pad(picture, [-count for count in beyond]) if any(beyond) else picture
        return inside, None, None, None, None, None, None


class _Attention(torch.autograd.Function):
    """The attention matrix frozen, softened to softmax(logits / tau): only the value carries the cotangent."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        tau: float,
        is_causal: bool,
        scale: float | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, mask)
        ctx.tau, ctx.is_causal, ctx.shape = tau, is_causal, value.shape
        ctx.scale = query.shape[-1] ** -0.5 if scale is None else scale
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal, scale=scale)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        query, key, mask = ctx.saved_tensors
        logits = (query * (ctx.scale / ctx.tau)) @ key.transpose(-2, -1)
        if ctx.is_causal:
            mask = torch.ones_like(logits, dtype=torch.bool).tril()
        if mask is not None:
            is_bool = mask.dtype == torch.bool
            logits = logits.masked_fill_(~mask, -math.inf) if is_bool else logits.add_(mask / ctx.tau)
        cotangent = torch.softmax(logits, -1).transpose(-2, -1) @ v
        return None, None, cotangent.sum_to_size(ctx.shape), None, None, None, None


class _Scaled(torch.autograd.Function):
    """Any other gate: v times a factor that is a function of z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, hard: Gate, factor: Gate) -> Tensor:
        ctx.save_for_backward(z)
        ctx.factor = factor
        value: Tensor = hard(z)
        return value

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor, None, None]:
        (z,) = ctx.saved_tensors
        return v * ctx.factor(z), None, None


def leaky_relu_factor(z: Tensor, tau: float, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """1 above 0 and the slope below, the step softened to Phi(z / tau)."""
    opened: Tensor = torch.special.ndtr(z / tau)
    return opened.mul_(1 - negative_slope).add_(negative_slope)


def elu_factor(z: Tensor, tau: float, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """1 above 0 and alpha (exp(z) - 1) / z below, the step softened to Phi(z / tau)."""
    below = z.clamp(max=-1e-7)
    return torch.lerp(alpha * torch.expm1(below) / below, torch.ones_like(z), torch.special.ndtr(z / tau))


def mish_factor(z: Tensor, tau: float, inplace: bool = False) -> Tensor:
    """The gate of z tanh(softplus(z)), at z / tau."""
    return torch.tanh(F.softplus(z / tau))


def softplus_factor(z: Tensor, tau: float, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """The slope of a softplus, sigma(beta z / tau)."""
    return torch.sigmoid(z * (beta / tau))


def group_norm_factor(
    z: Tensor,
    tau: None,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """The weight over the deviation of each group: statistics carry no cotangent."""
    groups = z.reshape(len(z), num_groups, -1)
    scale = torch.rsqrt(groups.var(2, correction=0) + eps)
    scale = scale.repeat_interleave(z.shape[1] // num_groups, 1)
    scale = scale if weight is None else scale * weight
    return scale.view(*scale.shape, *[1] * (z.ndim - 2))


def rms_norm_factor(
    z: Tensor,
    tau: None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """The weight over the root mean square: it carries no cotangent."""
    dims = list(range(-len(normalized_shape), 0))
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    scale = torch.rsqrt(z.square().mean(dims, keepdim=True) + eps)
    return scale if weight is None else scale * weight


relu: Gate = _ReLU.apply
sigmoid_relu: Gate = _SigmoidReLU.apply
guided_relu: Gate = _GuidedReLU.apply
relu6: Gate = _ReLU6.apply
gelu: Gate = _GELU.apply
silu: Gate = _SiLU.apply
hardswish: Gate = _Hardswish.apply
layer_norm: Gate = _LayerNorm.apply
max_pool: Gate = _MaxPool.apply
attention: Gate = _Attention.apply
scaled: Gate = _Scaled.apply
"""The functions themselves: a gate's input, then what its class takes after it."""
