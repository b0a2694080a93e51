"""Every rule of every element-wise gate against its diagonal, written out with Python's math (arXiv 2507.22832)."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from helpers.gate_checks import VALUES, Activation, Gate, check_gate, phi, sigma, soft, values
from helpers.rule_checks import Op, compile_pullback, numbers
from torch import nn

from sptrace.artifact.softening import RULES, Softening
from sptrace.compiler.emission import emit
from sptrace.compiler.emission.saving import to_bytes


@pytest.mark.parametrize(
    ("softening", "gate"),
    [
        pytest.param(Softening("paper"), lambda z: phi(z / 0.6), id="paper"),
        pytest.param(soft("relu", "phi", 0.25), lambda z: phi(z / 0.25), id="phi"),
        pytest.param(soft("relu", "sigmoid", 0.3), lambda z: sigma(z / 0.3), id="sigmoid"),
        pytest.param(soft("relu", "hard"), lambda z: float(z > 0), id="hard"),
    ],
)
def test_relu(softening: Softening, gate: Gate) -> None:
    check_gate(F.relu, gate, softening)


@pytest.mark.parametrize(
    "relu",
    [
        pytest.param(nn.ReLU(inplace=True), id="in place"),
        pytest.param(lambda x: x.clamp(min=0), id="clamp"),
        pytest.param(lambda x: x.clamp_(min=0), id="clamp in place"),
        pytest.param(lambda x: torch.clamp_min(x, 0.0), id="clamp_min"),
        pytest.param(lambda x: torch.clip(x, 0), id="clip"),
    ],
)
def test_relu_under_another_name(relu: Activation) -> None:
    check_gate(relu, lambda z: phi(z / 0.6), Softening("paper"))


def test_guided_relu() -> None:
    """max(v, 0) where z > 0: not linear in the cotangent, so there is no matrix to compare with."""
    image = values().float()
    cotangent = numbers(len(image), len(VALUES))
    pairs = zip(cotangent.flatten().tolist(), image.flatten().tolist(), strict=True)
    expected = np.array([max(v, 0.0) if z > 0 else 0.0 for v, z in pairs], np.float32)
    module = compile_pullback(Op(F.relu), image, soft("relu", "guided"))
    session = onnxruntime.InferenceSession(to_bytes(emit(module, "guided")))
    feeds = {"image": image.numpy(), "cotangent": cotangent.numpy()}
    for attribution in (module(image, cotangent)[0].numpy(), session.run(["attribution"], feeds)[0]):
        np.testing.assert_array_equal(attribution.ravel(), expected)


@pytest.mark.parametrize(
    ("softening", "gate"),
    [
        pytest.param(Softening("paper"), lambda z: phi(z / 0.6) * min(1, 6 / max(z, 6)), id="paper"),
        pytest.param(soft("relu6", "phi", 1.5), lambda z: phi(z / 1.5) * min(1, 6 / max(z, 6)), id="phi"),
        pytest.param(soft("relu6", "relu", 0.8), lambda z: phi(z / 0.8), id="relu"),
        pytest.param(soft("relu6", "hard"), lambda z: float(0 < z < 6), id="hard"),
    ],
)
def test_relu6(softening: Softening, gate: Gate) -> None:
    check_gate(F.relu6, gate, softening)


@pytest.mark.parametrize(
    ("relu6", "high"),
    [
        pytest.param(nn.ReLU6(inplace=True), 6, id="in place"),
        pytest.param(nn.Hardtanh(0, 1.5), 1.5, id="hardtanh from 0 to 1.5"),
        pytest.param(lambda x: F.hardtanh_(x, 0.0, 4.0), 4, id="hardtanh from 0 to 4, in place"),
    ],
)
def test_relu6_under_another_name(relu6: Activation, high: float) -> None:
    check_gate(relu6, lambda z: phi(z / 0.6) * min(1, high / max(z, high)), Softening("paper"))
    check_gate(relu6, lambda z: float(0 < z < high), Softening("hard"))


@pytest.mark.parametrize(
    ("low", "high"), [pytest.param(-1.0, 1.0, id="the default range"), pytest.param(-0.75, 4.0, id="askew")]
)
@pytest.mark.parametrize("rule", ["gate", "hard"])
def test_hardtanh(rule: str, low: float, high: float) -> None:
    """y = z m(z), and m is y / z."""
    gates: dict[str, Gate] = {
        "gate": lambda z: 1.0 if low <= z <= high else (low if z < low else high) / z,
        "hard": lambda z: float(low < z < high),
    }
    check_gate(nn.Hardtanh(low, high), gates[rule], soft("hardtanh", rule))
    if rule == "gate":
        check_gate(nn.Hardtanh(low, high), gates[rule], Softening("paper"))
        check_gate(lambda x: x.clamp(low, high), gates[rule], Softening("paper"))


def test_every_rule_of_an_elementwise_gate_is_tested_above() -> None:
    assert set(RULES["relu"]) == {"phi", "sigmoid", "guided", "hard"}
    assert set(RULES["relu6"]) == {"phi", "relu", "hard"}
    assert set(RULES["hardtanh"]) == {"gate", "hard"}


def test_a_clamp_that_is_no_gate_is_not_softened() -> None:
    check_gate(lambda x: x.clamp(0.25, 6.0), lambda z: float(0.25 < z < 6), Softening("paper"))


@pytest.mark.parametrize(("low", "high"), [(0.125, 4.0), (-6.0, -0.25)])
def test_a_hardtanh_without_zero_is_not_softened(low: float, high: float) -> None:
    check_gate(nn.Hardtanh(low, high), lambda z: float(low < z < high), Softening("paper"))


def test_gates_in_a_row_multiply() -> None:
    def gate(z: float) -> float:
        return phi(z / 0.6) * phi(max(z - 1, -1) / 0.6)

    check_gate(lambda x: F.relu(F.relu(x) - 1), gate, Softening("paper"))
