"""Temperatures relative to the gate's input: for each picture the absolute one that is its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import numbers
from helpers.small_networks import small
from torch import Tensor, nn

import sptrace
from sptrace import Softening
from sptrace.artifact.softening import RULES, UNITS, Relative

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "silu": F.silu,
    "gelu": F.gelu,
    "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "softplus": F.softplus,
    "glu": lambda z: F.glu(z, 1).repeat(1, 2, 1, 1),
    "max_pool": lambda z: F.max_pool2d(z, 3, 2, 1),
}


def built(gate: Callable[[Tensor], Tensor]) -> nn.Module:
    def body(self: Any, x: Tensor) -> Tensor:
        return torch.einsum("nchw,khw->nk", gate(self.conv(x)), self.weight)

    with torch.no_grad():
        sizes = gate(torch.zeros(1, 4, 6, 6)).shape[2:]
    return small(body, conv=nn.Conv2d(3, 4, 3), weight=numbers(5, *sizes))


def attribution(module: nn.Module, pictures: Tensor, softening: Softening) -> Tensor:
    program = sptrace.compile(module, pictures, softening=softening, input_range=(-40, 40))
    with torch.no_grad():
        answer: Tensor = program.module(pictures, torch.full((len(pictures),), 1))[0]
    return answer


def pictures() -> Tensor:
    """Of quite different scales."""
    return numbers(3, 3, 8, 8) * torch.tensor([0.1, 1.0, 7.0]).reshape(3, 1, 1, 1)


SCALES: dict[str, Callable[[np.ndarray], float]] = {
    "std": np.std,
    "rms": lambda z: np.sqrt((z[z > 0] ** 2).sum() / z.size),
}


@pytest.mark.parametrize("unit", SCALES)
@pytest.mark.parametrize("kind", GATES)
def test_each_picture_has_its_own(kind: str, unit: str) -> None:
    module = built(GATES[kind])
    relative = attribution(module, pictures(), Softening("paper", tau={kind: f"0.7{unit}"}))
    for row, picture in enumerate(pictures()):
        tau = 0.7 * float(SCALES[unit](module.conv(picture[None]).detach().numpy().astype("float64")))
        alone = attribution(module, picture[None], Softening("paper", tau={kind: tau}))
        assert (relative[row] - alone[0]).abs().max() <= 1e-5 * alone.abs().max()


def test_every_rule_with_a_temperature_is_tested_above() -> None:
    heated = {kind for kind, rules in RULES.items() if any(rules.values())}
    assert heated - {"attention"} == set(GATES)


def test_every_unit_is_tested_above() -> None:
    assert set(SCALES) == set(UNITS)


@pytest.mark.parametrize("unit", SCALES)
def test_windows_of_a_picture_belong_together(unit: str) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        windows = self.conv(x).reshape(-1, 12, 6)
        return torch.einsum("nwd,kwd->nk", torch.relu(windows).reshape(-1, 24, 6), self.weight)

    module = small(body, conv=nn.Conv2d(3, 4, 3), weight=numbers(5, 24, 6))
    whole = small(
        lambda self, x: torch.einsum("nwd,kwd->nk", torch.relu(self.conv(x)).reshape(-1, 24, 6), self.weight),
        conv=nn.Conv2d(3, 4, 3),
        weight=numbers(5, 24, 6),
    )
    whole.load_state_dict(module.state_dict())
    softening = Softening("paper", tau={"relu": Relative(0.5, unit)})
    given, wanted = (attribution(one, pictures(), softening) for one in (module, whole))
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-6)


def test_pictures_that_do_not_come_first() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return torch.einsum("cnhw,kchw->nk", torch.relu(self.conv(x).transpose(0, 1)), self.weight)

    module = small(body, conv=nn.Conv2d(3, 4, 3), weight=numbers(5, 4, 6, 6))
    with pytest.raises(
        sptrace.UnsupportedError, match="one picture's explanation would depend on the others"
    ):
        attribution(module, pictures(), Softening("paper", tau={"relu": "1std"}))


@pytest.mark.parametrize(("tau", "level"), [("1std", 0.5), ("1rms", -0.5), ("1rms", 0.0)])
def test_a_layer_without_a_scale(tau: str, level: float) -> None:
    module = built(F.relu)
    nn.init.zeros_(module.conv.weight)
    nn.init.constant_(module.conv.bias, level)
    size = pictures()[0].numel()
    # Something has to depend on the picture, or there is nothing to explain.
    beside = small(
        lambda self, x: self.constant(x) + self.linear(x.flatten(1)),
        constant=module,
        linear=nn.Linear(size, 5),
    )
    given = attribution(beside, pictures(), Softening("paper", tau={"relu": tau}))
    assert given.isfinite().all()
