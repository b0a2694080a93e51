"""Parity with captum (Kokhlikyan et al., arXiv 2009.07896), a second opinion on every program that captum has too.

captum runs the network in float32 under autograd, sptrace its ONNX file. A hard gate whose input float32 cannot tell
from 0 may fall on either side in two correct programs, and then moves single pixels by percents (see `hard_gates`): on
four photographs at 128 x 128, captum's integrated gradients of EfficientNet-Lite0 in float32 were up to 9e-2 away from
captum's own in float64. So the pictures here are small and few, and chosen so that captum in float32, captum in float64
and the artifact put every gate on the same side: of 200 for ResNet-18 the one whose gates are furthest from 0 and from
ties, in all programs and samples, 8e-6 standard deviations of their layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
import torchvision
from helpers import deterministic
from skimage import data
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import sptrace
from sptrace import models
from sptrace.artifact.noise import normal
from sptrace.runtime import photo

pytestmark = pytest.mark.filterwarnings("ignore:.*hooks.*", "ignore:Input Tensor .* gradients")

TOLERANCE = 1e-4
"""Of the largest value, at every pixel."""

SAMPLES, SIGMA, SEED = 3, 0.1, 3


class Pixels(nn.Module):
    """The network with its input in [-1, 1], as the artifact takes it."""

    def __init__(self, body: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("mean", torch.tensor(mean).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return self.body(((image + 1) / 2 - self.mean) / self.std)


class Block(nn.Module):
    """A block of a ResNet whose two ReLUs are modules of their own and not in place, as captum's hooks need them."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.block, self.first, self.second = block, nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        block = self.block
        y = block.bn2(block.conv2(self.first(block.bn1(block.conv1(x)))))
        return self.second(y + (x if block.downsample is None else block.downsample(x)))


@dataclass(frozen=True)
class Case:
    """One network and one picture.

    Arguments:
        network: as sptrace compiles it.
        pixels: the same for captum.
        layer: where the class activation map is read.
        image: float32 [1, 3, H, W] in [-1, 1].
        mean, std: the network's normalisation.
    """

    network: nn.Module
    pixels: Pixels
    layer: str
    image: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def at_layer(self) -> nn.Module:
        return self.pixels.body.get_submodule(self.layer)


def resnet18() -> Case:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    network = deterministic.fill(torchvision.models.resnet18(weights=None), 2)
    twin = copy.deepcopy(network)
    twin.relu = nn.ReLU()
    for layer in (twin.layer1, twin.layer2, twin.layer3, twin.layer4):
        for name, block in list(layer.named_children()):
            layer.add_module(name, Block(block).eval())
    return Case(network, Pixels(twin, mean, std), "layer4", deterministic.images(92, 1, 48), mean, std)


def efficientnet_lite0() -> Case:
    """With its ImageNet weights. Its gates are ReLU6, which guided backprop leaves alone, captum's and ours."""
    network = models.resolve("efficientnet_lite0", size=64)
    how = network.preprocessing
    image = torch.from_numpy(photo.prepare(photo.Image.fromarray(data.coffee()), how))
    mean, std = tuple(how.mean), tuple(how.std)
    pixels = Pixels(copy.deepcopy(network.module), mean, std)
    return Case(network.module, pixels, "_conv_head", image, mean, std)


@pytest.fixture(scope="module", params=[resnet18, efficientnet_lite0], ids=lambda build: build.__name__)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param()


@pytest.fixture
def explain(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Tensor, int]]:
    """Attribution and class of a program by its artifact. Without verification, whose work captum does here."""
    monkeypatch.setattr("sptrace.compiler.compile.verify", lambda *_, **__: None)

    def explain(program: str, **options: Any) -> tuple[Tensor, int]:
        compiled = sptrace.compile(
            case.network, case.image, program=program, mean=case.mean, std=case.std, **options
        )
        compiled.save(tmp_path / "program.onnx")
        result = sptrace.load(tmp_path / "program.onnx").explain(case.image.numpy())
        if "cam" in program:
            assert compiled.description.settings["layer"] == case.layer
        return torch.from_numpy(result.attribution), int(result.target[0])

    return explain


def assert_close(what: str, given: Tensor, wanted: Tensor) -> None:
    wanted = wanted.detach()
    assert given.shape == wanted.shape
    error = ((given - wanted).abs().max() / wanted.abs().max()).item()
    print(f"{what}: {error:.1e} of the largest value")
    assert error <= TOLERANCE


def saliency(case: Case, target: int) -> Tensor:
    return captum.attr.Saliency(case.pixels).attribute(case.image, target, abs=False)


def input_x_gradient(case: Case, target: int) -> Tensor:
    return captum.attr.InputXGradient(case.pixels).attribute(case.image, target)


def guided_backprop(case: Case, target: int) -> Tensor:
    return captum.attr.GuidedBackprop(case.pixels).attribute(case.image, target)


def integrated_gradients(case: Case, target: int) -> Tensor:
    method = captum.attr.IntegratedGradients(case.pixels)
    return method.attribute(case.image, 0.0, target, n_steps=SAMPLES, method="riemann_middle")


@pytest.mark.parametrize(
    ("program", "by_captum", "options"),
    [
        ("gradient", saliency, {}),
        ("input_x_gradient", input_x_gradient, {}),
        ("guided_backprop", guided_backprop, {}),
        ("integrated_gradients", integrated_gradients, {"samples": SAMPLES, "baseline": 0.0}),
    ],
)
def test_programs_at_pixels(
    case: Case, explain: Any, program: str, by_captum: Callable[[Case, int], Tensor], options: dict[str, Any]
) -> None:
    given, target = explain(program, **options)
    assert_close(program, given, by_captum(case, target))


def test_smoothgrad(case: Case, explain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """captum's NoiseTunnel is given the artifact's noise: that of draw 0, 1, ... for its samples in their order."""
    drawn: list[Tensor] = []

    def ours(mean: float, deviation: Tensor) -> Tensor:
        assert mean == 0
        assert (deviation == SIGMA).all()
        count, *sizes = deviation.shape
        drawn.append(torch.from_numpy(np.stack([normal(draw, tuple(sizes), SEED) for draw in range(count)])))
        return drawn[-1] * deviation

    given, target = explain("smoothgrad", samples=SAMPLES, sigma=SIGMA, seed=SEED)
    monkeypatch.setattr(torch, "normal", ours)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(case.pixels))
    wanted = tunnel.attribute(
        case.image, nt_type="smoothgrad", nt_samples=SAMPLES, stdevs=SIGMA, target=target, abs=False
    )
    assert [len(noise) for noise in drawn] == [SAMPLES]
    assert_close("smoothgrad", given, wanted)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_gradcam(case: Case, explain: Any, mode: str) -> None:
    """captum's map has one channel, ours three that are the same."""
    given, target = explain("gradcam", interpolation=mode)
    method = captum.attr.LayerGradCam(case.pixels, case.at_layer())
    small = method.attribute(case.image, target, relu_attributions=True)
    wanted = captum.attr.LayerAttribution.interpolate(small, tuple(case.image.shape[2:]), mode)
    assert (wanted > 0).any()
    assert_close(f"gradcam {mode}", given, wanted.expand_as(given))


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_guided_gradcam(case: Case, explain: Any, mode: str) -> None:
    given, target = explain("guided_gradcam", interpolation=mode)
    method = captum.attr.GuidedGradCam(case.pixels, case.at_layer())
    assert_close(f"guided_gradcam {mode}", given, method.attribute(case.image, target, interpolate_mode=mode))
