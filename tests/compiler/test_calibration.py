from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_networks import classifier, images, small
from torch import Tensor, nn

import sptrace
from sptrace import Softening
from sptrace.artifact.description import Description, Preprocessing
from sptrace.compiler.dead_leaves import dead_leaves

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


Layer = Callable[[Tensor], Tensor]
VERSIONS: dict[str, Callable[[Tensor, Layer], tuple[Tensor, ...]]] = {
    "joined": lambda x, layer: layer(torch.cat([x, x.flip(3)])).chunk(2),
    "stacked": lambda x, layer: (
        layer(torch.stack([x, x.flip(3)]).flatten(0, 1)).unflatten(0, (2, -1)).unbind()
    ),
    "in turn": lambda x, layer: (
        layer(torch.stack([x, x.flip(3)], 1).flatten(0, 1)).unflatten(0, (-1, 2)).unbind(1)
    ),
}


@pytest.mark.parametrize("name", VERSIONS)
def test_several_versions_of_a_picture_in_one_batch(name: str) -> None:
    """The scale is that of both versions together, and no picture's is another one's too."""

    def body(self: Any, x: Tensor) -> Tensor:
        first, second = VERSIONS[name](x, lambda x: self.conv(x).relu())
        return (first * second).mean((2, 3))

    network = small(body, conv=nn.Conv2d(3, 4, 3, padding=1))
    pictures = images(3, seed=5) * torch.tensor([0.1, 0.3, 1.0]).reshape(3, 1, 1, 1)
    program = sptrace.compile(network, images(1), calibration=pictures)
    squares = [network.conv(x).relu().square().mean((1, 2, 3)) for x in (pictures, pictures.flip(3))]  # type: ignore[operator]
    (measured,) = program.description.scales
    assert measured.scale == pytest.approx(float(torch.stack(squares).mean(0).sqrt().mean()), rel=1e-5)
    if name == "in turn":
        own = sptrace.compile(network, images(1), softening=Softening(scale="sample"))
        faint = torch.cat([images(1), 0.2 * images(1, seed=3)])
        both, alone = (
            own.module(given, torch.tensor([0, 1])[-len(given) :])[0] for given in (faint, faint[1:])
        )
        assert torch.allclose(both[1:], alone, rtol=0, atol=1e-6 * float(alone.abs().max()))
    else:
        with pytest.raises(sptrace.SptraceError, match=r"relu has no pullback here: .*which picture"):
            sptrace.compile(network, images(1), softening=Softening(scale="sample"))
