"""Calls that the reference opens: RNNs whose nonlinearity is a ReLU, which would hide their gates, and polar."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rnn_relu_cell(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """One step, relu(W x + b + W' h + b')."""
    return F.relu(F.linear(x, w_ih, b_ih) + F.linear(h, w_hh, b_hh))


def rnn_relu(
    x: Tensor,
    start: Tensor,
    weights: Sequence[Tensor],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """What torch.rnn_relu gives in eval mode: all steps of the last layer, and each layer's last."""
    each = 4 if has_biases else 2
    ends = []
    x = x.transpose(0, 1) if batch_first else x
    for layer in range(layers):
        ways = []
        for way in range(2 if bidirectional else 1):
            place = layer * (2 if bidirectional else 1) + way
            h, steps = start[place], []
            for step in x.flip(0) if way else x:
                h = rnn_relu_cell(step, h, *weights[place * each : (place + 1) * each])
                steps.append(h)
            ways.append(torch.stack(steps[::-1] if way else steps))
            ends.append(h)
        x = torch.cat(ways, -1)
    return x.transpose(0, 1) if batch_first else x, torch.stack(ends)


def polar(size: Tensor, angle: Tensor) -> Tensor:
    """Size e^(i angle): of sizes below 0 the backward of torch 2.14.1 has the wrong sign."""
    return torch.complex(size * torch.cos(angle), size * torch.sin(angle))


OPENED: dict[str, Callable[..., Any]] = {
    "polar": polar,
    "rnn_relu": rnn_relu,
    "rnn_relu_cell": rnn_relu_cell,
}
"""By the name of the call."""
