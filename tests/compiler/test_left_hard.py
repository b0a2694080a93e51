"""What is piecewise and no gate is listed, kept in the artifact, and warned about."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import classifier, images, small, transformer
from torch import Tensor, nn

import sptrace
from sptrace import passes
from sptrace.artifact.description import HardOp
from sptrace.artifact.softening import Softening
from sptrace.cli import main
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.left_hard import left_hard


def listed(function: Callable[[Tensor], Tensor], softening: Softening | str = "relative") -> list[str]:
    """The ops that a network of one convolution and the function leaves hard."""
    network = small(lambda self, x: function(self.conv(x)), conv=nn.Conv2d(3, 4, 3))
    return of(network, softening)


def of(network: nn.Module, softening: Softening | str = "relative") -> list[str]:
    module = capture(network, images(1))
    passes.run(passes.PREPARE, module)
    passes.soften(module, Softening.of(softening))
    return [one.op for one in left_hard(module, Softening.of(softening))]


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x: torch.where(x > 1, x, 0.0), ["gt"]),
        (lambda x: x * (x.flip(-1) > 0), ["gt"]),
        (lambda x: x * (x.flip(-1) > 0).to(x.dtype).detach(), ["gt"]),
        (lambda x: x + torch.sign(x), ["sign"]),
        (lambda x: x + torch.round(4 * x), ["round"]),
        (lambda x: x.abs(), ["abs"]),
        (lambda x: x.clamp(min=0.5), ["clamp"]),
        (lambda x: F.hardsigmoid(x), ["hardsigmoid"]),
        (lambda x: x * F.one_hot(x.argmax(1), 4).movedim(-1, 1), ["argmax", "eq"]),
        (lambda x: x.topk(2, dim=1)[0], ["top-k or sort"]),
        (lambda x: x.sort(dim=1)[0][:, 1:3], ["top-k or sort"]),
        (lambda x: x.median(dim=1)[0], ["top-k or sort"]),
        (lambda x: x.kthvalue(2, dim=1)[0], ["top-k or sort"]),
        (lambda x: x.gather(1, x.topk(2, dim=1)[1]), ["top-k or sort"]),
    ],
)
def test_what_is_listed(function: Callable[[Tensor], Tensor], ops: list[str]) -> None:
    assert listed(function) == ops
    assert listed(function, "hard") == []


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * (x > 0),
        lambda x: (x + x.abs()) / 2,
        lambda x: torch.maximum(x, x.flip(-1)),
        lambda x: x.amax(1),
        lambda x: x.clamp(0, 6),
        lambda x: x * F.hardsigmoid(x),
        lambda x: F.normalize(x, dim=1),
        lambda x: F.relu(x).clamp(min=1e-6).pow(3),
        lambda x: F.log_softmax(x, 1),
        lambda x: torch.logsumexp(3 * x, 1),
        lambda x: torch.nan_to_num(x),
        lambda x: x + (torch.round(x) - x).detach(),
        lambda x: x.masked_fill(torch.eye(x.shape[-1]) > 0, 0.0),
    ],
)
def test_what_is_not(function: Callable[[Tensor], Tensor]) -> None:
    """Gates, what keeps a quotient finite, what carries no cotangent, and masks that do not depend on the image."""
    assert listed(function) == []


def test_usual_networks_have_nothing_of_it() -> None:
    assert of(classifier()) == of(transformer()) == []


def test_a_gate_that_is_hard_by_choice_is_not_listed() -> None:
    assert listed(lambda x: x * (x > 0), Softening(rule={"relu": "hard"})) == []


def test_compiling_warns_and_the_artifact_keeps_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (x > 0.5)

    def body(self: nn.Module, x: Tensor) -> Tensor:
        return self.mask(self.conv(x)).mean((2, 3))  # type: ignore[no-any-return, operator]

    network = small(body, conv=nn.Conv2d(3, 4, 3), mask=Masked())
    with pytest.warns(sptrace.SptraceWarning, match="left hard: gt in mask: ") as caught:
        program = sptrace.compile(network, images(1, 8))
    assert len(caught) == 1
    assert program.description.left_hard == (HardOp("gt", "mask"),)
    program.save(tmp_path / "masked.onnx")
    assert sptrace.load(tmp_path / "masked.onnx").description == program.description
    with pytest.raises(SystemExit):
        main(["inspect", str(tmp_path / "masked.onnx")])
    assert "left hard" in (shown := capsys.readouterr().out)
    assert "gt in mask" in shown
    with warnings.catch_warnings():
        warnings.simplefilter("error", sptrace.SptraceWarning)
        sptrace.compile(network, images(1, 8), program="gradient")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.cummax(3).values,
        lambda x: torch.logsumexp(x, 1, keepdim=True),
        lambda x: torch.logaddexp(x, x.flip(3)),
        lambda x: torch.linalg.matrix_norm(x, float("inf")),
        lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), padding_mode="border", align_corners=False),
    ],
)
def test_what_passes_write_out_with_maxima_is_no_gate(function: Callable[[Tensor], Tensor]) -> None:
    network = small(lambda self, x: function(self.conv(x)).flatten(1)[:, :5], conv=nn.Conv2d(3, 4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sptrace.SptraceWarning)
        program = sptrace.compile(network, images(1), softening="paper")
    assert program.description.gates == ()
