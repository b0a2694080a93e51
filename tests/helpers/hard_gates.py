"""Which gates of a `gradient` program are open, and what the gradient is if they are.

A network of ReLUs and max pools is piecewise affine: which gates are open decides its gradient. A gate whose input is
closer to its threshold than float32 resolves is decided by rounding, and the gradient jumps with it, by percents at
single pixels. So a float32 program cannot be held to a float64 gradient as it is. It can be held to two statements
that together say more: given the program's own decisions its gradient is the float64 gradient, and it decides
otherwise than float64 only where float32 cannot know.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from torch import Tensor, nn

original_max_pool2d = F.max_pool2d


@dataclass
class Decisions:
    """What the gates of a program decided, in the order in which the network runs them.

    Arguments:
        relus: for every ReLU a bool tensor of its shape, True where it is open.
        pools: for every max pool an int64 tensor of its output's shape: which cell of the window it takes, counted
            row by row.
    """

    relus: list[Tensor]
    pools: list[Tensor]


@dataclass
class Doubt:
    """Gates that were decided otherwise than float64 decides them.

    Arguments:
        gates: how many gates there are.
        margins: for every gate decided otherwise, how far float64 sees it from its threshold, as a share of the
            standard deviation of the layer's input.
        samples: in which samples of the batch they are.
    """

    gates: int = 0
    margins: list[float] = field(default_factory=list)
    samples: set[int] = field(default_factory=set)

    def add(self, otherwise: Tensor, margin: Tensor) -> None:
        self.gates += otherwise.numel()
        self.margins += margin[otherwise].tolist()
        self.samples |= set(otherwise.nonzero()[:, 0].tolist())


def run_with_decisions(
    program: bytes, image: Tensor, target: Tensor
) -> tuple[np.ndarray, np.ndarray, Decisions]:
    """Run a `gradient` program in onnxruntime; returns attribution, logits and what its gates decided.

    The conditions of its gates (Greater for a ReLU; for a max pool one Equal per cell of the window) become outputs
    of a copy of the program. The pullback runs backwards, so the last gate of the network comes first.
    """
    model = onnx.load_from_string(program)
    conditions = [node for node in model.graph.node if node.op_type in ("Greater", "Equal")]
    for node in conditions:
        model.graph.output.add().name = node.output[0]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    attribution, logits, *answers = session.run(None, {"image": image.numpy(), "target": target.numpy()})
    kinds = [node.op_type for node in conditions]
    relus = [torch.from_numpy(open_) for kind, open_ in zip(kinds, answers, strict=True) if kind == "Greater"]
    # An Equal of rank 2 compares classes with the target.
    found = [torch.from_numpy(cell) for kind, cell in zip(kinds, answers, strict=True) if kind == "Equal"]
    return (
        attribution,
        logits,
        Decisions(relus[::-1], _first_cells([cell for cell in found if cell.ndim == 4])),
    )


def _first_cells(found: list[Tensor]) -> list[Tensor]:
    """Group the cells by pool, the last pool of the network coming first: pools have outputs of different shapes."""
    pools: list[list[Tensor]] = []
    for cell in found:
        if not pools or pools[-1][0].shape != cell.shape:
            pools.append([])
        pools[-1].append(cell)
    for cells in pools:
        assert torch.stack(cells).any(0).all(), "a window without a maximum"
    return [torch.stack(cells).int().argmax(0) for cells in reversed(pools)]


def gradient(
    network: nn.Module, image: Tensor, target: Tensor, decisions: Decisions | None = None
) -> tuple[Tensor, Tensor, Doubt]:
    """The gradient of the target's logit by autograd, its gates as decided; None: by the network's own decisions.

    Arguments:
        network: pixels in, logits out; calls F.relu and F.max_pool2d, directly or through torch.nn. float64.
        image: float64 [N, 3, H, W].
        target: int64 [N].
        decisions: those of a program.

    Returns:
        The gradient [N, 3, H, W], the logits [N, classes], and how far the decisions are from the network's own.
    """
    leaf = image.clone().requires_grad_()
    doubt = Doubt()
    with _replaying(decisions, doubt):
        logits = network(leaf)
    (result,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
    return result, logits.detach(), doubt


@contextmanager
def _replaying(decisions: Decisions | None, doubt: Doubt) -> Iterator[None]:
    """Within this context ReLUs and max pools have their own values, but the derivatives of the decisions."""
    if decisions is None:
        yield
        return
    relus, pools = iter(decisions.relus), iter(decisions.pools)

    def relu(z: Tensor, inplace: bool = False) -> Tensor:
        is_open = next(relus)
        assert is_open.shape == z.shape
        doubt.add(is_open != (z > 0), z.detach().abs() / z.detach().std())
        return _with_value(z * is_open, z.clamp(min=0))

    def max_pool2d(
        z: Tensor,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        ceil_mode: bool,
        return_indices: bool,
    ) -> Tensor:
        window = next(pools)
        value, own = original_max_pool2d(
            z, kernel_size, stride, padding, dilation, ceil_mode=ceil_mode, return_indices=True
        )
        assert window.shape == value.shape
        rows, columns = (torch.arange(size) * stride - padding for size in value.shape[2:])
        row = rows[:, None] + window // kernel_size * dilation
        column = columns + window % kernel_size * dilation
        index = row * z.shape[3] + column
        taken = z.flatten(2).gather(2, index.flatten(2)).reshape(value.shape)
        doubt.add(index != own, (value - taken).detach() / z.detach().std())
        return _with_value(taken, value)

    with mock.patch.multiple(F, relu=relu, max_pool2d=max_pool2d):
        yield
    assert next(relus, None) is None, "the program has more ReLUs than the network"
    assert next(pools, None) is None, "the program has more max pools than the network"


def _with_value(differentiated: Tensor, value: Tensor) -> Tensor:
    """The derivatives of one tensor, the value of another."""
    return differentiated + (value - differentiated).detach()
