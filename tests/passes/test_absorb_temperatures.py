"""The network's function stays, the pullback stays, and gates between layers need no factor any more."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import Tensor, fx, nn

from sptrace import passes
from sptrace.artifact.softening import Softening
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import depends_on, placeholder
from sptrace.compiler.graph.facts import Facts, facts, record
from sptrace.compiler.pullback import pull_back
from sptrace.passes import absorb_temperatures

TOLERANCE = 2e-6
ERF = 1 / math.sqrt(2)


def softened(network: nn.Module, softening: Softening | None = None) -> fx.GraphModule:
    module = capture(network, images(1))
    passes.run(passes.PREPARE, module)
    passes.soften(module, softening or Softening("paper"))
    return module


def pulled_back(module: fx.GraphModule) -> fx.GraphModule:
    """(logits, the pullback of their sum)."""
    module = copy.deepcopy(module)
    image = placeholder(module.graph, "image")
    assert image in depends_on(module.graph, image)
    output = next(node for node in module.graph.nodes if node.op == "output")
    (logits,) = output.all_input_nodes
    with module.graph.inserting_before(output):
        ones = module.graph.call_function(torch.ops.aten.ones_like.default, (logits,))
        record(ones, Facts(facts(logits).values, adjoint=True))
        attribution = pull_back(module, logits, ones, image)
    output.args = ((logits, attribution),)
    passes.run(passes.LOWER, module)
    return module


def absorbed(network: nn.Module, count: int, softening: Softening | None = None) -> fx.GraphModule:
    """The pass applies to `count` gates; the network's values and the pullback stay."""
    module = softened(network, softening)
    before = pulled_back(module)
    assert absorb_temperatures(module) == count
    assert_same_values(module, network, tolerance=TOLERANCE)
    after = pulled_back(module)
    image = images(2)
    for wanted, given in zip(before(image), after(image), strict=True):
        assert wanted.abs().max() > 0
        assert (given - wanted).abs().max() <= TOLERANCE * wanted.abs().max()
    return after


def factors(module: fx.GraphModule) -> list[fx.Node]:
    """Products of the pullback with numbers, but for those of weights."""
    return [
        node
        for node in nodes(module, "aten.mul.Tensor")
        if facts(node).adjoint and not isinstance(node.args[1], fx.Node) and node.args[0].op != "get_attr"
    ]


def residual(act: nn.Module) -> nn.Module:
    """What ResNets and DenseNets are made of: every number of it is in one of few groups."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.stem(x)))
        x = self.act(self.second(self.act(self.norm(self.first(x)))) + x)
        x = self.act(torch.cat([self.third(x[:, :6]), x * 0.5], 1) - self.shift)
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))

    return small(
        body,
        act=act,
        stem=nn.Conv2d(3, 8, 3, 2, 1),
        pool=nn.MaxPool2d(3, 2, 1),
        first=nn.Conv2d(8, 6, 1),
        norm=nn.BatchNorm2d(6),
        second=nn.Conv2d(6, 8, 3, padding=1, bias=False),
        third=nn.Conv2d(6, 8, 3, padding=1),
        shift=torch.linspace(-1, 1, 16).reshape(1, 16, 1, 1),
        head=nn.Linear(64, 5),
    )


@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU6()], ids=["relu", "relu6"])
def test_gates_of_a_residual_network(act: nn.Module) -> None:
    after = absorbed(residual(act), count=4)
    assert [node.kwargs["tau"] for node in after.graph.nodes if node.target is gates.max_pool2d] == [
        pytest.approx(0.3 / (0.6 * math.sqrt(2)))
    ]
    assert not any(node.args[1] == pytest.approx(ERF / 0.6) for node in factors(after))


def test_a_weight_that_is_read_twice_stays() -> None:
    """It cannot be on two scales, and the file holds it once."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.act(self.first(self.act(self.stem(x))))
        return self.head(self.act(self.twice(self.act(self.twice(x)))).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 8, 3), "first": nn.Conv2d(8, 8, 1), "twice": nn.Conv2d(8, 8, 1)}
    absorbed(small(body, act=nn.ReLU(), head=nn.Linear(8, 5), **layers), count=1)


def test_temperatures_that_differ() -> None:
    """One group has one scale: the first gate's. The others keep a factor, the right one."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.late(self.early(x) + x).mean((2, 3)))

    network = small(body, stem=nn.Conv2d(3, 8, 1), early=nn.ReLU(), late=nn.ReLU(), head=nn.Linear(8, 3))
    softening = Softening("paper", overrides={"late": {"relu": 0.3}})
    after = absorbed(network, count=1, softening=softening)
    taus = [node.kwargs["tau"] for node in after.graph.nodes if node.target is gates.relu]
    assert taus == [ERF, pytest.approx(0.3 * ERF / 0.6)]


def test_the_excitation_pullback() -> None:
    after = absorbed(residual(nn.ReLU()), count=4, softening=Softening("excitation"))
    assert {node.kwargs["tau"] for node in after.graph.nodes if node.target is gates.relu} == {1.0}


def mixer(act: nn.Module) -> nn.Module:
    def body(self: Any, x: Tensor) -> Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.second(self.act(self.first(self.norm(tokens))))
        return self.head(self.norm(tokens).mean(1))

    return small(
        body,
        act=act,
        stem=nn.Conv2d(3, 8, 4, 4),
        norm=nn.LayerNorm(8, elementwise_affine=False),
        first=nn.Linear(8, 16),
        second=nn.Linear(16, 8),
        head=nn.Linear(8, 5),
    )


def test_gelu() -> None:
    after = absorbed(mixer(nn.GELU()), count=1)
    assert ops(after)["aten.erf.default"] == 1
    assert not [node for node in factors(after) if facts(node).path == "act"]


@pytest.mark.parametrize(
    ("act", "softening"),
    [
        (nn.GELU(approximate="tanh"), Softening("paper")),
        (nn.GELU(), Softening("paper", tau={"gelu": 0.5})),
        (nn.GELU(), Softening("hard")),
        (nn.SiLU(), Softening("paper")),
        (nn.ReLU(), Softening("hard")),
        (nn.ReLU(), Softening("paper", tau={"relu": "0.6std"})),
        (nn.Hardtanh(), Softening("paper")),
    ],
)
def test_gates_that_have_no_such_factor(act: nn.Module, softening: Softening) -> None:
    absorbed(mixer(act), count=0, softening=softening)


def squeezing(self: Any, x: Tensor) -> Tensor:
    x = self.act(self.stem(x))
    return self.head((x * torch.sigmoid(self.squeeze(x.mean((2, 3), keepdim=True)))).mean((2, 3)))


def normed(self: Any, x: Tensor) -> Tensor:
    return self.head(F.group_norm(self.act(self.stem(x)), 2).mean((2, 3)))


def squared(self: Any, x: Tensor) -> Tensor:
    x = self.act(self.stem(x))
    return self.head((x * x).mean((2, 3)))


def added_to_the_image(self: Any, x: Tensor) -> Tensor:
    return self.head((self.act(self.stem(x)) + x[:, :1, ::4, ::4]).mean((2, 3)))


def answered(self: Any, x: Tensor) -> Tensor:
    return self.act(self.stem(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("body", "count"), [(squeezing, 1), (normed, 0), (squared, 0), (added_to_the_image, 0), (answered, 0)]
)
def test_what_else_may_read_the_numbers(body: Any, count: int) -> None:
    network = small(
        body, act=nn.ReLU(), stem=nn.Conv2d(3, 8, 4, 4), squeeze=nn.Conv2d(8, 8, 1), head=nn.Linear(8, 5)
    )
    absorbed(network, count)
