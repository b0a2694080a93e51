"""LSTM, GRU and RNN, step by step, against torch.autograd on the module itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from helpers.rule_checks import ROUNDED, Op, check_ordinary, compile_pullback, numbers, randomized
from helpers.small_networks import images, ops, small
from torch import Tensor, nn

import sptrace
from sptrace.compiler.reference.eager_recurrences import rnn_relu

BOTH_WAYS_TWICE = {"num_layers": 2, "bidirectional": True}


class Read(nn.Module):
    """The rows of a picture one after the other; everything that the recurrence gives, in one row a picture."""

    def __init__(self, recurrence: nn.RNNBase) -> None:
        super().__init__()
        self.recurrence = randomized(recurrence)

    def forward(self, image: Tensor) -> Tensor:
        rows = image.flatten(2).mT
        steps, last = self.recurrence(rows if self.recurrence.batch_first else rows.transpose(0, 1))
        results = [steps] if self.recurrence.batch_first else [steps.transpose(0, 1)]
        results += [each.transpose(0, 1) for each in (last if isinstance(last, tuple) else (last,))]
        return torch.cat([each.flatten(1) for each in results], 1)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (nn.LSTM, {}),
        (nn.LSTM, {"batch_first": False}),
        (nn.LSTM, {"bias": False}),
        (nn.LSTM, BOTH_WAYS_TWICE),
        (nn.LSTM, {**BOTH_WAYS_TWICE, "proj_size": 2}),
        (nn.GRU, {}),
        (nn.GRU, {"bias": False, "bidirectional": True}),
        (nn.GRU, {**BOTH_WAYS_TWICE, "batch_first": False}),
        (nn.RNN, BOTH_WAYS_TWICE),
        (nn.RNN, {**BOTH_WAYS_TWICE, "nonlinearity": "relu"}),
        (nn.RNN, {"nonlinearity": "relu", "bias": False, "batch_first": False}),
    ],
    ids=str,
)
def test_recurrences(kind: type[nn.RNNBase], options: dict[str, Any]) -> None:
    check_ordinary(Op(Read(kind(3, 4, **{"batch_first": True, **options}))), 3, 2, 2, tolerance=ROUNDED)


@pytest.mark.parametrize(
    "cell",
    [nn.LSTMCell(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4), nn.RNNCell(3, 4, nonlinearity="relu")],
    ids=str,
)
def test_cells_that_a_network_calls_step_by_step(cell: nn.RNNCellBase) -> None:
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = randomized(cell)

        def forward(self, image: Tensor) -> Tensor:
            state: Any = None
            for step in image.flatten(2).unbind(2):
                state = self.cell(step, state)
            return torch.cat(state, 1) if isinstance(state, tuple) else state

    check_ordinary(Op(Steps()), 3, 2, 2, tolerance=ROUNDED)


def test_a_state_that_comes_from_the_image() -> None:
    class Started(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = randomized(nn.LSTM(3, 3, batch_first=True))

        def forward(self, image: Tensor) -> Tensor:
            start = image.mean((2, 3))[None], image.tanh().sum((2, 3))[None]
            return self.lstm(image.flatten(2).mT, start)[0]

    check_ordinary(Op(Started()), 3, 2, 2, tolerance=ROUNDED)


def test_both_ways_run_side_by_side() -> None:
    lstm = Read(nn.LSTM(3, 4, batch_first=True, bidirectional=True))
    module = compile_pullback(Op(lstm), numbers(2, 3, 2, 2))
    # Eight steps forward and back would be twice as many: one product of the state a step and its adjoint.
    assert ops(module)["aten.tanh.default"] == 2 * 4
    assert ops(module)["aten.constant_pad_nd.default"] < 4 * 5, (
        "steps are put side by side, not between zeros"
    )


@pytest.mark.parametrize("softening", ["paper", "relative"])
def test_the_relu_of_an_rnn_is_softened(softening: str) -> None:
    network = small(
        lambda self, x: self.head(self.rnn(x.flatten(2).mT[:, ::16])[0].flatten(1)),
        rnn=nn.RNN(3, 4, 2, nonlinearity="relu", batch_first=True, bidirectional=True),
        head=nn.Linear(32, 3),
    )
    program = sptrace.compile(network, images(1, 8), softening=softening)
    assert [(gate.kind, gate.count) for gate in program.description.gates] == [("relu", 2 * 2 * 4)]


def test_the_reference_opens_an_rnn_with_relus() -> None:
    for options in ({}, {"bias": False, "batch_first": True}, BOTH_WAYS_TWICE):
        rnn = nn.RNN(3, 4, nonlinearity="relu", **options).double()
        x, start = numbers(5, 2, 3).double(), numbers(rnn.num_layers * (1 + rnn.bidirectional), 2, 4).double()
        if rnn.batch_first:
            x = x.transpose(0, 1)
        given = rnn_relu(
            x,
            start,
            rnn._flat_weights,
            rnn.bias,
            rnn.num_layers,
            0.0,
            False,
            rnn.bidirectional,
            rnn.batch_first,
        )
        for one, wanted in zip(given, rnn(x, start), strict=True):
            torch.testing.assert_close(one, wanted)


def test_whole_program_on_unseen_pictures() -> None:
    """As timm's sequencer: rows and columns of a map, each read both ways; the batch and a side are one dimension."""

    def body(self: Any, x: Tensor) -> Tensor:
        y = self.patches(x).permute(0, 2, 3, 1)
        n, h, w, c = y.shape
        across = self.across(y.reshape(n * h, w, c))[0].reshape(n, h, w, -1)
        down = self.down(y.transpose(1, 2).reshape(n * w, h, c))[0].reshape(n, w, h, -1).transpose(1, 2)
        return self.head(torch.cat([across, down], -1).mean((1, 2)))

    network = small(
        body,
        patches=nn.Conv2d(3, 4, 4, 4),
        across=nn.LSTM(4, 3, batch_first=True, bidirectional=True),
        down=nn.LSTM(4, 3, batch_first=True, bidirectional=True),
        head=nn.Linear(12, 3),
    )
    program = sptrace.compile(network, images(1, 16), program="gradient")
    session = onnxruntime.InferenceSession(program.onnx_model)
    for count in (1, 3):
        image = images(count, 16, seed=5)
        leaf = image.double().requires_grad_()
        network.double()(leaf)[:, 1].sum().backward()
        network.float()
        (attribution,) = session.run(["attribution"], {"image": image.numpy(), "target": np.full(count, 1)})
        np.testing.assert_allclose(attribution, leaf.grad, rtol=0, atol=2e-5 * leaf.grad.abs().max())
