"""Parity with the authors' own float64 code, through the ONNX file. These tests run first (`conftest`)."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from helpers import deterministic, hard_gates, runtimes
from torch import Tensor, fx, nn

import sptrace
from sptrace import Softening
from sptrace.compiler.capture import from_torch

GOLDEN = Path(__file__).parent / "golden"
NETWORKS = (
    "resnet18",
    "vgg11_bn",
    "densenet121",
    "convnext_tiny",
    "efficientnet_b0",
    "pvt_v2_b0",
    "vit_b_32",
)
SOFTENING = {"vit_b_32": Softening("paper", rule={"attention": "full"})}
"""What the authors' code did where it was not the method's default."""

SEED = 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ATTRIBUTION = 2e-5
"""Of the largest golden value."""

MARGIN = 1e-6
"""How close to its threshold a gate must be if float32 may decide it otherwise than float64, in standard deviations.

The inputs of ResNet-18's gates were measured to be off by 5e-7 (root mean square in the worst layer), which rounding
does differently on every kind of CPU. Gates that were in fact decided otherwise lay at most 5e-8 from their threshold.
"""

SHARE = 1e-6
"""How many of all gates may be; measured: 1 of 5 million (ResNet-18), none of 18 (VGG-11), 3 of 32 (DenseNet-121)."""

EXACT = 2e-6
"""How far the golden gradients may be from autograd in float64: 1.2e-6 was measured for EfficientNet-B0, whose gradient
is of the order of 1e-12, and at most 2e-8 for the others."""

ASCENT = 2e-5
"""Of the largest golden value, after five steps."""

LOGITS = 1e-5
"""Of the largest golden logit."""


@dataclass(frozen=True)
class Case:
    name: str
    network: nn.Module
    golden: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    make = timm.create_model if request.param.startswith("pvt") else torchvision.models.get_model
    network = deterministic.fill(make(request.param), SEED)
    return Case(request.param, network, dict(np.load(GOLDEN / f"{request.param}-{SEED}.npz")))


@pytest.fixture(scope="module")
def captured() -> Callable[..., fx.GraphModule]:
    """`capture.from_torch.capture`, once for each network."""
    right, known = from_torch.capture, {}

    def once(module: nn.Module, *arguments: Any) -> fx.GraphModule:
        if known.get("module") is not module:
            known.update(module=module, graph=right(module, *arguments))
        return copy.deepcopy(known["graph"])

    return once


@pytest.fixture
def compile_to_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captured: Callable[..., fx.GraphModule]
) -> Iterator[Callable[..., Path]]:
    """Write an artifact. Without verification, whose work the golden files do here, and which has its own tests."""
    monkeypatch.setattr("sptrace.compiler.compile.verify", lambda *_, **__: None)
    monkeypatch.setattr("sptrace.compiler.compile.faithful.require_faithful", lambda *_, **__: None)
    monkeypatch.setattr("sptrace.compiler.compile.from_torch.capture", captured)
    path = tmp_path / "program.onnx"

    def write(case: Case, program: str, **options: str) -> Path:
        softening = SOFTENING.get(case.name, Softening("paper"))
        compiled = sptrace.compile(
            case.network,
            picture()[:1],
            program=program,
            softening=softening,
            mean=MEAN,
            std=STD,
            **options,
        )
        compiled.save(path)
        return path

    yield write
    path.unlink()  # half a gigabyte, which pytest would keep for three runs


def picture() -> Tensor:
    return deterministic.images(SEED, 2)


def largest(difference: np.ndarray, golden: np.ndarray) -> float:
    return float(np.abs(difference).max() / np.abs(golden).max())


def sampled(attribution: np.ndarray) -> np.ndarray:
    """The positions that a golden file keeps."""
    return attribution.reshape(-1)[deterministic.sample_index(SEED, attribution.size)]


@pytest.mark.parametrize(("kept", "clamp"), [("pullback_ascent", "never"), ("pullback_ascent_clip", "every")])
def test_pullback_ascent(case: Case, compile_to_file: Callable[..., Path], kept: str, clamp: str) -> None:
    golden = case.golden[kept]
    explainer = sptrace.load(compile_to_file(case, "pullback_ascent", clamp=clamp))
    result = explainer.explain(picture().numpy(), case.golden["target"])
    error = largest(sampled(result.attribution) - golden, golden)
    norm = np.linalg.norm(result.attribution.astype(np.float64)) / case.golden[f"{kept}_l2"]
    print(f"{case.name} {kept}: {error:.1e} of the largest value, norm {norm - 1:+.1e}")
    assert error <= ASCENT
    assert abs(norm - 1) <= ASCENT
    assert largest(result.logits - case.golden["logits"], case.golden["logits"]) <= LOGITS


def test_soft_pullback(case: Case, compile_to_file: Callable[..., Path]) -> None:
    golden = case.golden["soft_pullback"]
    path = compile_to_file(case, "soft_pullback")
    result = sptrace.load(path).explain(picture().numpy(), case.golden["target"])
    error = largest(sampled(result.attribution) - golden, golden)
    norm = np.linalg.norm(result.attribution.astype(np.float64)) / case.golden["soft_pullback_l2"]
    print(f"{case.name} soft_pullback: {error:.1e} of the largest value, norm {norm - 1:+.1e}")
    assert error <= ATTRIBUTION
    assert abs(norm - 1) <= ATTRIBUTION
    assert largest(result.logits - case.golden["logits"], case.golden["logits"]) <= LOGITS
    if importlib.util.find_spec("openvino"):
        runtimes.agree(path, runtimes.openvino, {"image": picture().numpy(), "target": case.golden["target"]})


class Pixels(nn.Module):
    """The network in float64, with its input in [-1, 1]."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = copy.deepcopy(body).double()

    def forward(self, image: Tensor) -> Tensor:
        mean, std = (image.new_tensor(numbers).reshape(1, 3, 1, 1) for numbers in (MEAN, STD))
        return self.body(((image + 1) / 2 - mean) / std)


def test_gradient(case: Case, compile_to_file: Callable[..., Path]) -> None:
    """golden file = float64 autograd; float64 autograd with the program's gates = program; see `hard_gates`."""
    golden, image = case.golden["gradient"], picture()
    scale = np.abs(golden).max()
    target = torch.from_numpy(case.golden["target"])
    program = compile_to_file(case, "gradient").read_bytes()
    given, logits, decisions = hard_gates.run_with_decisions(program, image, target)
    assert largest(logits - case.golden["logits"], case.golden["logits"]) <= LOGITS

    pixels = Pixels(case.network)
    exact, exact_logits, _ = hard_gates.gradient(pixels, image.double(), target)
    from_golden = largest(sampled(exact.numpy()) - golden, golden)
    assert from_golden <= EXACT
    assert largest(exact_logits.numpy() - case.golden["logits"], case.golden["logits"]) <= 1e-6

    replayed, _, doubt = hard_gates.gradient(pixels, image.double(), target, decisions)
    error = np.abs(given - replayed.numpy()) / scale
    jump = np.abs(given - exact.numpy()) / scale
    print(
        f"{case.name} gradient: golden to float64 {from_golden:.1e}, "
        f"float64 with the program's gates to program {error.max():.1e}; "
        f"{len(doubt.margins)} of {doubt.gates} gates decided otherwise, "
        f"at most {max(doubt.margins, default=0):.1e} standard deviations from their thresholds; "
        f"they move {(jump > ATTRIBUTION).sum()} of {jump.size} positions by up to {jump.max():.1e}"
    )
    assert error.max() <= ATTRIBUTION
    assert max(doubt.margins, default=0) <= MARGIN
    assert len(doubt.margins) <= SHARE * doubt.gates
    certain = np.array([sample not in doubt.samples for sample in range(len(image))])
    assert (jump[certain] <= ATTRIBUTION).all()
    kept = sampled(np.broadcast_to(certain[:, None, None, None], given.shape))
    assert (np.abs(sampled(given) - golden)[kept] <= ATTRIBUTION * scale).all()
