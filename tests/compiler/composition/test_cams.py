"""Class activation maps beside their textbook definition, written with plain autograd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import images, ops, small
from torch import Tensor, nn

import sptrace
from sptrace.compiler.composition.cams import resize_matrix


def network() -> nn.Module:
    """One smooth gate before the layer `features` and one after it, so that the gradient has no jumps."""

    def body(self: Any, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.head(F.silu(self.last(x)).flatten(2).sum(2))

    return small(
        body,
        features=nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.SiLU(), nn.Conv2d(6, 5, (4, 3), stride=2)),
        last=nn.Conv2d(5, 8, (4, 5)),  # its output is no map any more
        head=nn.Linear(8, 4),
    )


def by_hand(image: Tensor, direction: Tensor, mode: str, temperature: float | None) -> tuple[Tensor, Tensor]:
    """The enlarged map, and the pullback at the image; SiLU by its derivative, or frozen as sigma(z / temperature)."""
    net, leaf = network(), image.clone().requires_grad_()

    def silu(z: Tensor) -> Tensor:
        if temperature is None:
            return F.silu(z)
        # Its value, and as its derivative the gate.
        linear = z * torch.sigmoid(z.detach() / temperature)
        return linear + (F.silu(z) - linear).detach()

    features = net.features[2](silu(net.features[0](leaf)))
    logits = net.head(silu(net.last(features)).flatten(2).sum(2))
    cotangent, attribution = torch.autograd.grad((logits * direction).sum(), [features, leaf])
    small_map = (features * cotangent.mean((2, 3), keepdim=True)).sum(1, keepdim=True).relu().detach()
    corners = False if mode == "bilinear" else None
    return F.interpolate(small_map, image.shape[2:], mode=mode, align_corners=corners), attribution


def explainer(path: Path, program: str, **options: Any) -> sptrace.Explainer:
    sptrace.compile(network(), images(1, 24), program=program, **options).save(path)
    return sptrace.load(path)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("program", ["gradcam", "guided_gradcam", "guided_pullback_cam"])
def test_the_definition(program: str, mode: str, tmp_path: Path) -> None:
    """Without ReLUs guided backprop is the gradient."""
    image, targets = images(3, 24, seed=2), [3, 0, 1]
    direction = F.one_hot(torch.tensor(targets), 4).float()
    enlarged, attribution = by_hand(image, direction, mode, 1.6 if program == "guided_pullback_cam" else None)
    assert 0 < (enlarged > 0).float().mean() < 1
    wanted = enlarged.expand_as(image) if program == "gradcam" else attribution * enlarged
    loaded = explainer(tmp_path / "cam.onnx", program, interpolation=mode)
    given = loaded.explain(image.numpy(), targets)
    np.testing.assert_allclose(given.attribution, wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())
    assert loaded.description.settings["layer"] == "features"
    assert given.activation is None
    assert given.label(0) == "class 3"


def test_a_direction(tmp_path: Path) -> None:
    image, direction = images(2, 24, seed=2), torch.tensor([[1.0, -1, 0, 0], [0, 0.5, 0, -2]])
    wanted = by_hand(image, direction, "bilinear", None)[0].expand_as(image)
    loaded = explainer(tmp_path / "cam.onnx", "gradcam", direction=True)
    given = loaded.attribute(image.numpy(), direction=direction.numpy())
    np.testing.assert_allclose(given, wanted, rtol=0, atol=2e-6 * wanted.abs().max().item())


def test_the_map_of_guided_gradcam_is_an_ordinary_gradcam(tmp_path: Path) -> None:
    """ReLUs are guided on the way to the image and hard on the way to the map: two pullbacks, one forward pass."""

    def body(self: Any, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(F.relu(self.first(x)))).mean((2, 3)))

    net = small(body, first=nn.Conv2d(3, 6, 3), last=nn.Conv2d(6, 8, 3), head=nn.Linear(8, 4))
    image = images(2, seed=2).numpy()
    answers, programs = {}, {}
    for program in ("gradcam", "guided_backprop", "guided_gradcam"):
        options = {} if program == "guided_backprop" else {"layer": "first"}
        programs[program] = sptrace.compile(net, images(1), program=program, **options)
        programs[program].save(tmp_path / "program.onnx")
        answers[program] = sptrace.load(tmp_path / "program.onnx").attribute(image, [2, 1])
    assert all((answers["gradcam"] > 0).any(axis=(1, 2, 3)))
    wanted = answers["gradcam"] * answers["guided_backprop"]
    np.testing.assert_allclose(answers["guided_gradcam"], wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())
    counts = {program: ops(compiled.module) for program, compiled in programs.items()}
    convolutions = {
        program: sum(number for op, number in count.items() if op.startswith("aten.conv"))
        for program, count in counts.items()
    }
    # Beside guided backprop's two forward and two adjoint ones: the hard adjoint of the last convolution.
    assert convolutions["guided_gradcam"] == convolutions["guided_backprop"] + 1
    # Grad-CAM alone never goes below its layer.
    assert convolutions["gradcam"] == convolutions["guided_backprop"] - 1


@pytest.mark.parametrize(("given", "wanted"), [(7, 224), (3, 10), (5, 5), (10, 4), (1, 6)])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_resizing_by_matrices(given: int, wanted: int, mode: str) -> None:
    picture = torch.randn(2, 1, given, given + 1, generator=torch.Generator().manual_seed(0))
    matrices = resize_matrix(given, wanted, mode), resize_matrix(given + 1, wanted, mode)
    corners = False if mode == "bilinear" else None
    expected = F.interpolate(picture, (wanted, wanted), mode=mode, align_corners=corners)
    torch.testing.assert_close(matrices[0] @ picture @ matrices[1].T, expected, rtol=0, atol=1e-6)
