"""The reference finds gates by what calls compute, and shares nothing with the compiler that reads a graph."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.gate_spellings import CURVES, LEAKY_RELUS, MAX_POOLS, NO_GATES, RELU6S, RELUS
from helpers.rule_checks import Op, numbers
from helpers.small_networks import images, small
from torch import Tensor, nn

import sptrace
from sptrace.artifact.softening import Softening
from sptrace.compiler.reference.eager import in_doubt, measure, reference
from sptrace.passes import spellings

Map = Callable[[Tensor], Tensor]

SPELLINGS = [
    *(("relu", name, spelling, F.relu) for name, spelling in RELUS.items()),
    *(
        ("leaky_relu", name, spelling, lambda x: F.leaky_relu(x, 0.1))
        for name, spelling in LEAKY_RELUS.items()
    ),
    *(("relu6", name, spelling, F.relu6) for name, spelling in RELU6S.items()),
    *(
        (kind, name, spelling, named)
        for kind, (named, spellings_of) in CURVES.items()
        for name, spelling in spellings_of.items()
    ),
    *(("max_pool", name, spelling, lambda x: F.max_pool2d(x, 2)) for name, spelling in MAX_POOLS.items()),
]


@pytest.mark.parametrize(("kind", "name", "spelling", "named"), SPELLINGS, ids=lambda item: str(item)[:20])
def test_a_spelling_is_its_gate(kind: str, name: str, spelling: Map, named: Map) -> None:
    image = 4 * numbers(3, 2, 4, 4, seed=3).double()
    direction = numbers(3, named(image).flatten(1).shape[1], seed=4).double()
    for preset in ("relative", "paper", "excitation", "guided", "hard"):
        softening = Softening(preset, scale="sample")
        given, wanted = (
            reference(Op(one), image, direction, rules=softening.gates)[0] for one in (spelling, named)
        )
        assert (given - wanted).abs().max() <= 1e-9 * wanted.abs().max(), preset


@pytest.mark.parametrize("name", NO_GATES)
def test_what_is_no_gate_is_left_alone(name: str) -> None:
    image = numbers(2, 2, 4, 4, seed=3).double()
    direction = numbers(2, NO_GATES[name](image).flatten(1).shape[1], seed=4).double()
    soft, hard = (
        reference(Op(NO_GATES[name]), image, direction, rules=Softening(preset).gates)[0]
        for preset in ("paper", "hard")
    )
    assert torch.equal(soft, hard)


def test_scales_are_measured_where_they_are_used() -> None:
    pictures = numbers(4, 2, 4, 4).double()
    rules = Softening("relative").gates
    for name, spelling, named in (
        ("(x + |x|) / 2", RELUS["(x + |x|) / 2"], F.relu),
        ("stack in front, max", MAX_POOLS["stack in front, max"], lambda x: F.max_pool2d(x, 2)),
    ):
        given, wanted = (measure(Op(one), pictures, rules=rules) for one in (spelling, named))
        assert given == pytest.approx(wanted, rel=1e-12), name


@pytest.mark.parametrize(
    "spelling",
    [
        *(RELUS[name] for name in ("where >", "(x + |x|) / 2", "mul_")),
        CURVES["silu"][1]["x / (1 + exp(-x))"],
        CURVES["hardswish"][1]["x relu6(x + 3) / 6"],
    ],
)
def test_a_gate_that_the_compiler_misses_is_refused(spelling: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small(lambda self, x: spelling(self.conv(x)).mean((2, 3)), conv=nn.Conv2d(3, 4, 3))
    monkeypatch.setattr(spellings.Spellings, "gate", lambda self, node: None)
    with pytest.raises(sptrace.VerificationError, match=re.escape("the attribution")):
        sptrace.compile(network, images(1, 8))


@pytest.mark.parametrize(
    ("spelling", "kind"),
    [
        (RELUS["where >"], "relu"),
        (RELUS["masked_fill_"], "relu"),
        (LEAKY_RELUS["max(x, 0.1 x)"], "leaky_relu"),
        (RELU6S["clamp(0, 6)"], "relu6"),
        (lambda x: torch.minimum(x, x.flip(-1)), "maximum"),
        (lambda x: x.amin(3), "maximum"),
    ],
)
def test_inputs_in_doubt_are_counted(spelling: Map, kind: str) -> None:
    """Numbers of the first row lie next to 0, and next to each other; all others are far away."""
    image = torch.arange(0.5, 16.0).double().reshape(1, 1, 4, 4)
    image[0, 0, 0] = torch.tensor([1e-7, 2e-7, 3e-7, 4e-7])
    hard = Softening("hard").gates
    counted = in_doubt(Op(spelling), image, rules=hard, jitter=1e-4)
    assert set(counted) == {("", kind)}
    assert 0 < counted["", kind] <= 8
    assert not in_doubt(Op(spelling), image, rules=hard, jitter=1e-9)


def test_a_network_of_spellings_is_compiled_as_its_twin() -> None:
    """On pictures that the compiler did not see, through all of it, onnxruntime included."""

    def network(relu: Map, leaky: Map, pool: Map) -> nn.Module:
        def body(self: nn.Module, x: Tensor) -> Tensor:
            x = relu(self.first(x))  # type: ignore[operator]
            x = pool(leaky(self.second(x)))  # type: ignore[operator]
            return self.head(x.mean((2, 3)))  # type: ignore[no-any-return, operator]

        layers = {"first": nn.Conv2d(3, 6, 3, padding=1), "second": nn.Conv2d(6, 6, 3, padding=1)}
        return small(body, **layers, head=nn.Linear(6, 4))

    written = network(RELUS["x * (x > 0)"], LEAKY_RELUS["max(x, 0.1 x)"], MAX_POOLS["view, amax"])
    named = network(F.relu, lambda x: F.leaky_relu(x, 0.1), lambda x: F.max_pool2d(x, 2))
    given, wanted = (
        sptrace.compile(one, images(1, 8)).module(images(3, 8, seed=9), torch.full((3,), -1))[0]
        for one in (written, named)
    )
    assert torch.linalg.vector_norm(given - wanted) <= 1e-5 * torch.linalg.vector_norm(wanted)


def test_a_network_of_smooth_spellings_is_compiled_as_its_twin() -> None:
    def network(gates: list[Map]) -> nn.Module:
        def body(self: nn.Module, x: Tensor) -> Tensor:
            x = 2 * self.conv(x)  # type: ignore[operator]
            return self.head(torch.cat([gate(x) for gate in gates], 1).mean((2, 3)))  # type: ignore[no-any-return, operator]

        return small(body, conv=nn.Conv2d(3, 4, 3, padding=1), head=nn.Linear(4 * len(gates), 4))

    several = [
        (named, spelling) for named, spellings_of in CURVES.values() for spelling in spellings_of.values()
    ]
    softening = Softening(overrides={"*": {"softplus": 0.5}})
    given, wanted = (
        sptrace.compile(network([pair[side] for pair in several]), images(1, 8), softening=softening)
        for side in (1, 0)
    )
    pictures = images(3, 8, seed=9), torch.full((3,), -1)
    given_map, wanted_map = (one.module(*pictures)[0] for one in (given, wanted))
    assert torch.linalg.vector_norm(given_map - wanted_map) <= 1e-5 * torch.linalg.vector_norm(wanted_map)
    assert given.description.gates == wanted.description.gates
    assert not given.description.left_hard
