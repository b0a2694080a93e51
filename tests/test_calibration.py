from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import classifier, images
from torch import Tensor, nn

import sptrace
from sptrace import Softening
from sptrace.artifact import Description, Preprocessing
from sptrace.dead_leaves import dead_leaves

RELATIVE = {"relu": "0.5rms", "max_pool": "0.2std"}


def hooked(network: torch.nn.Module, pictures: Tensor) -> dict[str, list[float]]:
    """The scale of what the modules take, one a picture and call: of ReLUs as in "0.5rms", of others as in "0.2std"."""
    seen: dict[str, list[float]] = {}
    for name, module in network.named_modules():
        if not list(module.children()):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.setdefault(name, []).append(scale(module, inputs[0]))
            )
    for picture in pictures:
        network(picture[None])
    return seen


def scale(module: torch.nn.Module, z: Tensor) -> float:
    rectifies = isinstance(module, torch.nn.ReLU)
    return float(z.relu().square().mean().sqrt() if rectifies else z.std(correction=0))


def compiled(softening: Softening, calibration: Tensor | None = None) -> sptrace.Program:
    return sptrace.compile(classifier(), images(2), softening=softening, calibration=calibration)


def explain(program: sptrace.Program) -> Tensor:
    with torch.no_grad():
        answer: Tensor = program.module(images(2), torch.tensor([0, 1]))[0]
    return answer


def synthetic() -> Tensor:
    height, width = images(1).shape[2:]
    return dead_leaves(Preprocessing((height, width)))


@pytest.mark.parametrize("count", [None, 1, 11])
def test_scales_are_means_over_the_calibration_pictures(count: int | None) -> None:
    """Without any, over synthetic pictures."""
    pictures = synthetic() if count is None else images(count, seed=5)
    seen = hooked(classifier(), pictures)
    program = compiled(
        Softening("paper", tau=RELATIVE, scale="calibration"), None if count is None else pictures
    )
    scales = program.description.scales
    assert [scale.path for scale in scales] == ["stem.2", "pool", "act"]
    for scale in scales:
        wanted = sum(seen[scale.path]) / len(pictures)
        assert scale.scale == pytest.approx(wanted, rel=1e-5)
    fixed = {scale.path: scale.scale for scale in scales}
    absolute = Softening(
        "paper",
        overrides={
            path: {kind: factor * fixed[path]}
            for path, kind, factor in (
                ("stem.2", "relu", 0.5),
                ("pool", "max_pool", 0.2),
                ("act", "relu", 0.5),
            )
        },
    )
    torch.testing.assert_close(explain(program), explain(compiled(absolute)), rtol=1e-5, atol=1e-7)


def test_it_is_written_into_the_artifact() -> None:
    softening = Softening("paper", tau=RELATIVE, scale="calibration")
    description = Description.from_json(compiled(softening).description.to_json())
    assert description.softening == softening
    assert len(description.scales) == 3
    assert {(gate.kind, gate.tau) for gate in description.gates} == {
        ("max_pool", "0.2std"),
        ("relu", "0.5rms"),
        ("relu6", 0.6),
    }


def test_a_layer_that_is_the_same_everywhere() -> None:
    network = classifier()
    torch.nn.init.zeros_(network.stem[1].weight)
    torch.nn.init.zeros_(network.stem[1].bias)
    softening = Softening("paper", tau={"relu": "0.01std"}, scale="calibration")

    class Beside(nn.Module):
        """Something has to depend on the picture, or there is nothing to explain."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.beside = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 7))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x) + self.beside(x)

    given = explain(sptrace.compile(Beside().eval(), images(2), softening=softening))
    assert given.isfinite().all()


@pytest.mark.parametrize(
    ("softening", "calibration", "message"),
    [
        (Softening("paper"), images(1), "calibration pictures are for relative temperatures"),
        (Softening("paper", tau=RELATIVE), images(1), "calibration pictures are for relative temperatures"),
        (
            Softening("paper", tau=RELATIVE, scale="calibration"),
            images(1, 24),
            "the calibration pictures are",
        ),
        (
            Softening("paper", tau=RELATIVE, scale="calibration"),
            images(1)[0],
            "the calibration must be a float32 tensor",
        ),
        (
            Softening("paper", tau=RELATIVE, scale="calibration"),
            "folder",
            "the calibration must be a float32 tensor",
        ),
    ],
)
def test_mistakes(softening: Softening, calibration: Any, message: str) -> None:
    with pytest.raises(sptrace.SptraceError, match=message):
        compiled(softening, calibration)
