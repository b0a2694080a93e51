"""Every op of `op_table`, compiled in small networks, beside autograd in float64 on pictures not seen before."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import onnxruntime
import pytest
import torch
from helpers import deterministic, op_table
from helpers.mutation_networks import Alone, Op
from torch import Tensor, nn

import sptrace
from sptrace.errors import UnsupportedError

TOGETHER = 12
"""How many ops share a network, which takes a third of the time."""


class SideBySide(nn.Module):
    """Each op by itself behind a convolution, with one logit of its own."""

    def __init__(self, ops: list[Op]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.ops = ops
        self.modules_among = nn.ModuleList(op for op in ops if isinstance(op, nn.Module))
        widths = [op(torch.zeros(2, 4, 8, 8)).flatten(1).shape[1] for op in ops]
        self.heads = nn.ModuleList(nn.Linear(width, 1) for width in widths)

    def forward(self, image: Tensor) -> Tensor:
        """A logit an op."""
        x = self.stem(image)
        logits = [head(op(x).flatten(1)) for op, head in zip(self.ops, self.heads, strict=True)]
        return torch.cat(logits, 1)


def _groups() -> Iterator[Any]:
    for kind, table in op_table.SERVED.items():
        names = list(table)
        for start in range(0, len(names), TOGETHER):
            some = names[start : start + TOGETHER]
            yield pytest.param({name: table[name] for name in some}, id=f"{kind}: {some[0]} to {some[-1]}")


@pytest.mark.parametrize("ops", list(_groups()))
def test_as_autograd_of_the_original(ops: dict[str, Op]) -> None:
    network = deterministic.fill(SideBySide(list(ops.values())), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sptrace.SptraceWarning)  # of what is left hard, as it is in PyTorch
        program = sptrace.compile(network, deterministic.images(0, 1, 8), program="gradient", link="none")
    session = onnxruntime.InferenceSession(program.onnx_model)
    in_float64 = copy.deepcopy(network).double()
    for seed in (5, 6):  # two pictures, each for every op
        image, targets = deterministic.images(seed, 1, 8).expand(len(ops), -1, -1, -1), torch.arange(len(ops))
        inputs = {"image": image.numpy(), "target": targets.numpy()}
        attribution, logits = map(torch.from_numpy, session.run(["attribution", "logits"], inputs))
        leaf = image.double().requires_grad_()
        answer = in_float64(leaf)
        (gradient,) = torch.autograd.grad(answer.gather(1, targets[:, None]).sum(), leaf)
        for index, name in enumerate(ops):
            assert (logits - answer)[:, index].abs().max() < 3e-5 * answer[:, index].abs().max().clamp(
                min=1
            ), name
            largest = gradient[index].abs().max()
            assert (attribution - gradient)[index].abs().max() < 2e-5 * largest, name


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(op, id=f"{kind}: {name}")
        for kind in ("accumulations", "windows", "gates")
        for name, op in op_table.SERVED[kind].items()
    ],
)
def test_softened_as_the_reference_has_it(op: Op) -> None:
    """What passes write out is the gate that the network called, and no other; compiling verifies that."""
    network = deterministic.fill(SideBySide([op]), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sptrace.SptraceWarning)
        sptrace.compile(network, deterministic.images(0, 1, 8), softening="paper", link="none")


@pytest.mark.parametrize(
    ("op", "why"),
    [pytest.param(op, why, id=name) for name, (op, why) in op_table.REFUSED.items()],
)
def test_refused_with_the_reason(op: Op, why: str) -> None:
    network = deterministic.fill(Alone(op), 1)
    with pytest.raises(UnsupportedError, match=why):
        sptrace.compile(network, deterministic.images(0, 1, 8), program="gradient")
