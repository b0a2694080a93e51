"""Gates written out of simpler ops have the pullback of the gate that they are, whatever the softening."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from helpers.gate_spellings import CURVES, LEAKY_RELUS, MAX_POOLS, NO_GATES, RELU6S, RELUS
from helpers.rule_checks import Op, SideBySide, check_jacobians, check_ordinary, compile_pullback, numbers
from torch import Tensor, nn

from sptrace.artifact.softening import PRESETS, Softening

Map = Callable[[Tensor], Tensor]


def pullbacks(maps: list[Map], softening: Softening | str, image: Tensor) -> Tensor:
    """The pullback of one cotangent through each of the maps, float64 [maps, N, C, H, W]; captured together."""
    module = compile_pullback(SideBySide(*(Op(one) for one in maps)).eval(), image, softening).double()
    cotangents = [numbers(*one(image).flatten(1).shape, seed=7).double() for one in maps]
    answers = []
    for index in range(len(maps)):
        given = [one * (place == index) for place, one in enumerate(cotangents)]
        answers.append(module(image, torch.cat(given, 1))[0])
    return torch.stack(answers)


def check_alike(spellings: Mapping[str, Map], named: Map, softening: Softening | str, image: Tensor) -> None:
    """Each spelling has the pullback of the gate under its name."""
    *given, wanted = pullbacks([*spellings.values(), named], softening, image)
    assert wanted.abs().max() > 0
    for name, one in zip(spellings, given, strict=True):
        assert (one - wanted).abs().max() <= 1e-6 * wanted.abs().max(), name


@pytest.mark.parametrize("preset", ["relative", "hard"])
@pytest.mark.parametrize(
    ("spellings", "named"),
    [
        pytest.param(RELUS, F.relu, id="relu"),
        pytest.param(LEAKY_RELUS, lambda x: F.leaky_relu(x, 0.1), id="leaky_relu"),
        pytest.param(RELU6S, F.relu6, id="relu6"),
        pytest.param(MAX_POOLS, lambda x: F.max_pool2d(x, 2), id="max_pool"),
    ],
)
def test_a_spelling_is_its_gate(spellings: Mapping[str, Map], named: Map, preset: str) -> None:
    check_alike(spellings, named, Softening(preset, scale="sample"), 4 * numbers(2, 3, 4, 4, seed=3).double())


@pytest.mark.parametrize("preset", ["relative", "paper", "hard"])
@pytest.mark.parametrize("name", CURVES)
def test_a_smooth_spelling_is_its_gate(name: str, preset: str) -> None:
    named, spellings = CURVES[name]
    check_alike(spellings, named, Softening(preset, scale="sample"), 4 * numbers(2, 3, 4, 4, seed=3).double())


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(preset: str) -> None:
    some = {name: RELUS[name] for name in ("where <", "mask.to", "mul_", "0.5 (|x| + x)", "clamp(tensor)")}
    check_alike(some, F.relu, preset, numbers(2, 1, 4, 4, seed=3).double())


def test_a_minimum_with_0_is_a_relu_in_the_mirror() -> None:
    maps: dict[str, Map] = {
        "clamp(max=0)": lambda x: x - x.clamp(max=0),
        "where": lambda x: x - torch.where(x < 0, x, 0.0),
        "(x - |x|) / 2": lambda x: x - (x - x.abs()) / 2,
    }
    check_alike(maps, F.relu, "paper", numbers(2, 1, 4, 4, seed=3).double())


def test_one_slope_a_channel() -> None:
    slopes = torch.tensor([0.1, 0.2, -0.3]).reshape(3, 1, 1)
    prelu = nn.PReLU(3)
    prelu.weight.data = slopes.flatten()
    image = numbers(2, 3, 2, 2).double()

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("slopes", slopes)

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, self.slopes * x)

    module = compile_pullback(SideBySide(Written(), prelu).eval(), image, "paper").double()
    cotangent = numbers(2, 12, seed=5).double()
    nothing = torch.zeros_like(cotangent)
    given = module(image, torch.cat([cotangent, nothing], 1))[0]
    wanted = module(image, torch.cat([nothing, cotangent], 1))[0]
    assert (given - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("largest", [True, False])
def test_the_larger_of_two_maps_is_a_max_pool_over_them(largest: bool) -> None:
    """Weights softmax((a, b) / tau), written out: a is the picture's upper half, b its lower half."""
    image, tau, sign = numbers(2, 1, 4, 2).double(), 0.5, 1.0 if largest else -1.0
    function = torch.maximum if largest else torch.minimum
    a, b = image.flatten(1).chunk(2, 1)
    share = torch.sigmoid(sign * (a - b) / tau)
    jacobians = torch.cat([torch.diag_embed(share), torch.diag_embed(1 - share)], 2)
    softening = Softening("paper", tau={"max_pool": tau})
    check_jacobians(Op(lambda x: function(*x.chunk(2, 2))), image, jacobians, softening=softening)
    choice = torch.where if largest else (lambda condition, one, other: torch.where(condition, other, one))
    written = Op(lambda x: choice(x[:, :, :2] > x[:, :, 2:], x[:, :, :2], x[:, :, 2:]))
    check_jacobians(written, image, jacobians, softening=softening)


@pytest.mark.parametrize("keepdim", [True, False])
def test_a_maximum_over_dimensions(keepdim: bool) -> None:
    """Weights softmax(z / tau) over channels, written out."""
    image, tau = numbers(2, 3, 2, 2).double(), 0.5
    weights = torch.softmax(image / tau, 1).flatten(2)  # [N, C, cells]
    jacobians = torch.einsum("ncp,pq->npcq", weights, torch.eye(4, dtype=torch.float64)).flatten(2)
    softening = Softening("paper", tau={"max_pool": tau})
    check_jacobians(Op(lambda x: x.amax(1, keepdim=keepdim)), image, jacobians, softening=softening)


@pytest.mark.parametrize(
    "name", ["where >=", "x * (x > 0)", "masked_fill", "(x + |x|) / 2", "maximum(x, 0)", "clamp(tensor)"]
)
def test_hard_spellings_have_their_own_derivative_at_0(name: str) -> None:
    image = torch.tensor([[-1.0, 0.0, 2.0, 0.0]], dtype=torch.float64).reshape(1, 1, 2, 2)
    check_ordinary(Op(RELUS[name]), 1, 2, 2, image=image)


def test_what_is_no_gate_is_left_alone() -> None:
    image = numbers(2, 2, 4, 4, seed=3).double()
    functions = list(NO_GATES.values())
    given, hard = (pullbacks(functions, preset, image) for preset in ("paper", "hard"))
    for name, one, other in zip(NO_GATES, given, hard, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12), name
