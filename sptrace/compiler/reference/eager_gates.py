"""The reference's rules for gates and norms beyond the paper's, written out once more in eager PyTorch.

Like `reference.eager` this shares no code with the compiler. A rule takes the gate's input z, the
temperature and the call's other arguments, and answers the factor by which the cotangent is multiplied.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Factor = Callable[..., Tensor]


def _step(z: Tensor, tau: float) -> Tensor:
    return 0.5 * torch.erfc(-z / (tau * math.sqrt(2)))


def _leaky(
    z: Tensor, tau: float, negative_slope: float = 0.01, weight: Tensor | None = None, **_: Any
) -> Tensor:
    """1 above 0 and the slope below, the step between them softened."""
    slope: Tensor | float = negative_slope
    if weight is not None:
        slope = weight.view(1, -1, *[1] * (z.ndim - 2)) if z.ndim > 1 else weight
    return slope + (1 - slope) * _step(z, tau)


def _elu(
    z: Tensor, tau: float, form: str = "elu", alpha: float = 1.0, slope: float = 1.0, **_: Any
) -> Tensor:
    """1 above 0 and y / z below, the step between them softened; a SELU's scale multiplies both."""
    scale = 1.0
    if form == "selu":
        alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    if form == "celu":
        slope = 1 / alpha
    below = z.clamp(max=-1e-7)
    ratio = alpha * torch.expm1(slope * below) / below
    open_ = _step(z, tau)
    return scale * (open_ + (1 - open_) * ratio)


def _rows(z: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    return torch.rsqrt(z.var(list(axes), unbiased=False, keepdim=True) + eps)


def _per_channel(weight: Tensor, z: Tensor) -> Tensor:
    return weight.view(1, -1, *[1] * (z.ndim - 2))


def _group_norm(
    z: Tensor,
    tau: None,
    num_groups: int | None = None,
    weight: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    groups = z.shape[1] if num_groups is None else num_groups
    grouped = z.reshape(z.shape[0], groups, -1)
    factor = _rows(grouped, [2], eps).expand_as(grouped).reshape(z.shape)
    return factor if weight is None else factor * _per_channel(weight, z)


def _rms_norm(
    z: Tensor,
    tau: None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    **_: Any,
) -> Tensor:
    eps = torch.finfo(z.dtype).eps if eps is None else eps
    axes = list(range(-len(normalized_shape), 0))
    factor = torch.rsqrt(z.square().mean(axes, keepdim=True) + eps)
    return factor if weight is None else factor * weight


FACTORS: dict[str, dict[str, Factor]] = {
    "leaky_relu": {"phi": _leaky},
    "elu": {"phi": _elu},
    "quick_gelu": {"gate": lambda z, tau, sharpness, **_: torch.sigmoid(sharpness * z / tau)},
    "hardswish": {"gate": lambda z, tau, **_: ((z / tau + 3) / 6).clamp(0, 1)},
    "mish": {"gate": lambda z, tau, **_: torch.tanh(torch.log1p(torch.exp(z / tau)))},
    "softplus": {"gate": lambda z, tau, beta=1.0, **_: torch.sigmoid(beta * z / tau)},
    "group_norm": {"frozen": _group_norm},
    "rms_norm": {"frozen": _rms_norm},
}
"""For each kind and rule the factor; rule "hard" is autograd."""

CALLS: dict[str, tuple[str, str]] = {
    "leaky_relu": ("leaky_relu", "input negative_slope inplace"),
    "prelu": ("leaky_relu", "input weight"),
    "rrelu": ("leaky_relu", "input lower upper training inplace"),
    "elu": ("elu", "input alpha inplace"),
    "selu": ("elu", "input inplace"),
    "celu": ("elu", "input alpha inplace"),
    "hardswish": ("hardswish", "input inplace"),
    "mish": ("mish", "input inplace"),
    "softplus": ("softplus", "input beta threshold"),
    "glu": ("glu", "input dim"),
    "group_norm": ("group_norm", "input num_groups weight bias eps"),
    "instance_norm": (
        "group_norm",
        "input running_mean running_var weight bias use_input_stats momentum eps",
    ),
    "rms_norm": ("rms_norm", "input normalized_shape weight eps"),
}
"""The name of a call: the kind of its gate, and the names of the arguments that it takes by position."""
