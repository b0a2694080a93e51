from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, classifier, images, ops, small
from torch import Tensor, nn

from sptrace import passes
from sptrace.artifact.description import GateCount
from sptrace.artifact.softening import Softening
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.facts import facts
from sptrace.errors import SptraceError


def softened(activation: Any, softening: Softening) -> tuple[tuple[GateCount, ...], list[Any]]:
    """What `soften` answers for one op, and the gates that it put in; the network's values must not change."""
    network = small(lambda self, x: activation(self.conv(x)), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    passes.run((passes.functionalize, passes.canonicalize_pools), module)
    counts = passes.soften(module, softening)
    assert_same_values(module, network)
    made = (gates.relu, gates.hardtanh, gates.max_pool2d)
    return counts, [node for node in module.graph.nodes if node.target in made]


@pytest.mark.parametrize(
    "activation",
    [
        torch.relu,
        nn.ReLU(),
        nn.ReLU(inplace=True),
        lambda z: z.clamp(min=0),
        lambda z: torch.clamp_min(z, 0.0),
    ],
)
def test_relu(activation: Any) -> None:
    counts, [gate] = softened(activation, Softening("paper"))
    assert counts == (GateCount("relu", "phi", 0.6, 1),)
    assert gate.target is gates.relu
    assert gate.kwargs == {"rule": "phi", "tau": 0.6}


@pytest.mark.parametrize(
    ("activation", "kind", "bounds"),
    [
        (nn.ReLU6(), "relu6", (0.0, 6.0)),
        (nn.ReLU6(inplace=True), "relu6", (0.0, 6.0)),
        (F.relu6, "relu6", (0.0, 6.0)),
        (nn.Hardtanh(0, 3), "relu6", (0.0, 3.0)),
        (nn.Hardtanh(), "hardtanh", (-1.0, 1.0)),
        (nn.Hardtanh(-2, 0.5), "hardtanh", (-2.0, 0.5)),
        (nn.Hardtanh(-2, 0), "relu6", (0.0, 2.0)),
        (lambda z: z.clamp(0, 6), "relu6", (0.0, 6.0)),
        (lambda z: z.clamp(-2, 2).clamp(max=1), "hardtanh", (-2.0, 1.0)),
    ],
)
def test_relu6_and_hardtanh(activation: Any, kind: str, bounds: tuple[float, float]) -> None:
    counts, [gate] = softened(activation, Softening("paper"))
    tau, rule = (0.6, "phi") if kind == "relu6" else (None, "gate")
    assert counts == (GateCount(kind, rule, tau, 1),)
    assert gate.target is gates.hardtanh
    assert gate.args[1:] == bounds
    assert gate.kwargs == {"rule": rule, "tau": tau}


def test_max_pool() -> None:
    counts, [gate] = softened(nn.MaxPool2d((3, 2), 2, (1, 0), ceil_mode=True), Softening("paper"))
    assert counts == (GateCount("max_pool", "softmax", 0.3, 1),)
    assert gate.target is gates.max_pool2d
    assert gate.args[1:] == ([3, 2], [2, 2], [1, 0], [1, 1], True)


@pytest.mark.parametrize(
    "activation",
    [
        nn.Hardtanh(1, 2),
        nn.Hardtanh(-2, -1),
        lambda z: z.clamp(min=0.5),
        torch.sigmoid,
        nn.AvgPool2d(2),
    ],
)
def test_what_is_no_gate_is_left_alone(activation: Any) -> None:
    assert softened(activation, Softening("paper")) == ((), [])


def test_the_softening_decides_on_rule_and_temperature() -> None:
    softening = Softening("paper", tau={"relu": 0.25}, rule={"relu": "sigmoid", "max_pool": "hard"})
    assert softened(nn.ReLU(), softening)[0] == (GateCount("relu", "sigmoid", 0.25, 1),)
    counts, [gate] = softened(nn.MaxPool2d(2), softening)
    assert counts == (GateCount("max_pool", "hard", None, 1),)
    assert gate.kwargs == {"rule": "hard", "tau": None}


def test_a_whole_network() -> None:
    network = classifier()
    module = capture(network, images(1))
    passes.run(passes.PREPARE, module)
    before = ops(module)
    counts = passes.soften(module, Softening("paper"))
    assert counts == (
        GateCount("max_pool", "softmax", 0.3, 1),
        GateCount("relu", "phi", 0.6, 2),
        GateCount("relu6", "phi", 0.6, 1),
    )
    assert sum(before.values()) == sum(ops(module).values())
    assert_same_values(module, network, tolerance=1e-6)


def test_where_a_gate_came_from_is_kept() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return self.act(self.conv(x))

    network = small(body, conv=nn.Conv2d(3, 4, 3), act=nn.ReLU())
    module = capture(network, images(1))
    passes.soften(module, Softening("paper"))
    [gate] = [node for node in module.graph.nodes if node.target is gates.relu]
    assert facts(gate).path == "act"
    assert facts(gate).adjoint is False


def test_overrides_by_module_path() -> None:
    softening = Softening("paper", overrides={"block.*": {"relu6": "hard"}, "st*": {"relu": 0.25}})
    module = capture(classifier(), images(1))
    passes.run(passes.PREPARE, module)
    assert passes.soften(module, softening) == (
        GateCount("max_pool", "softmax", 0.3, 1),
        GateCount("relu", "phi", 0.25, 1),
        GateCount("relu", "phi", 0.6, 1),
        GateCount("relu6", "hard", None, 1),
    )
    taus = [node.kwargs["tau"] for node in module.graph.nodes if node.target is gates.relu]
    assert taus == [0.25, 0.6]


def test_attention_overrides_by_module_path() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for attention in self.attentions:
            tokens = attention(tokens, tokens, tokens)[0]
        return tokens

    attentions = nn.ModuleList(nn.MultiheadAttention(3, 1, batch_first=True) for _ in range(2))
    module = capture(small(body, attentions=attentions), images(1))
    passes.run(passes.PREPARE, module)
    counts = passes.soften(module, Softening("paper", overrides={"attentions.1": {"attention": "full"}}))
    assert counts == (GateCount("attention", "full", None, 1), GateCount("attention", "value", 1.0, 1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"steam.*": {"relu": 0.3}},
            "'steam.*' matches no relu gate of the network: it has them in stem.2, act",
        ),
        (
            {"stem.*": {"relu": 0.3, "gelu": 1}},
            "'stem.*' matches no gelu gate of the network: it has none at all",
        ),
    ],
)
def test_an_override_that_matches_nothing(overrides: Any, message: str) -> None:
    module = capture(classifier(), images(1))
    passes.run(passes.PREPARE, module)
    with pytest.raises(SptraceError, match=re.escape(message)):
        passes.soften(module, Softening("paper", overrides=overrides))
