"""Gating nonlinearities as single nodes: forward hard, backward soft.

The pass `soften` puts a call to one of these functions where the network had a ReLU, a ReLU6 or a max pool.
Computing one gives exactly the network's own value; the keywords `rule` and `tau` say how the pullback treats it,
and only `sptrace.pullback.gates` reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def relu(z: Tensor, *, rule: str, tau: float | None) -> Tensor:
    """max(z, 0)."""
    return torch.relu(z)


def hardtanh(z: Tensor, low: float, high: float, *, rule: str, tau: float | None) -> Tensor:
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
    tau: float | None,
) -> Tensor:
    """The largest value of each window; z is [N, C, H, W]."""
    return torch.nn.functional.max_pool2d(z, kernel, stride, padding, dilation, ceil_mode)
