"""The programs a second time, in eager PyTorch and plain Python loops: what compiled programs are verified against.

Like `reference.eager` it shares no code with the compiler. Each program is a function of `pull`, which maps
(image, target) to (attribution, logits, resolved target), and of the program's settings. A direction takes the place of
the target everywhere.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sptrace.artifact.noise import normal


class Pull(Protocol):
    """The pullback at a picture, image float32 [N, 3, H, W] and target int64 [N]."""

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Attribution, logits, and the target resolved."""

    def at_layer(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """For class activation maps: the layer's output, and the pullback there; guided gates are hard."""

    def with_noisy_weights(self, draw: int, sigma: float, seed: int) -> Pull:
        """The pullback of a network whose parameters are multiplied by 1 + sigma times normal noise."""


Range = tuple[float, float]
Answer = tuple[Tensor, Tensor]
"""Attribution, and the logits of the image itself."""


def plain(pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range) -> Answer:
    """nu(x)."""
    attribution, logits, _ = pull(image, target)
    return attribution, logits


def input_times(
    pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range
) -> Answer:
    """x nu(x)."""
    attribution, logits, _ = pull(image, target)
    return image * attribution, logits


def double(pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range) -> Answer:
    """nu(x + alpha nu(x))."""
    attribution, logits, target = pull(image, target)
    return pull(image + settings["alpha"] * attribution, target)[0], logits


def ascent(pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range) -> Answer:
    """x_K - x_0; in float64 between the pullbacks, so that the difference keeps its digits."""
    _, logits, target = pull(image, target)
    start, point = image.double(), image.double()
    for _ in range(settings["steps"]):
        attribution = pull(point.float(), target)[0].double()
        point = point + settings["alpha"] * attribution / attribution.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        if settings["epsilon"] is not None:
            away = point - start
            length = away.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            point = start + away * (settings["epsilon"] / length).clamp(max=1)
        if settings["clamp"] == "every":
            point = point.clamp(*limits)
    if settings["clamp"] == "last":
        point = point.clamp(*limits)
    return (point - start).float(), logits


def smooth(pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range) -> Answer:
    """Mean of nu(x + noise)."""
    _, logits, target = pull(image, target)
    total = torch.zeros_like(image)
    for draw in range(settings["samples"]):
        noise = torch.from_numpy(normal(draw, tuple(image.shape[1:]), settings["seed"]))
        total += pull(image + settings["sigma"] * noise, target)[0]
    return total / settings["samples"], logits


def fusion(pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range) -> Answer:
    """Mean of nu(x + noise) with noisy weights."""
    _, logits, target = pull(image, target)
    total, samples, seed = torch.zeros_like(image), settings["samples"], settings["seed"]
    for draw in range(settings["draws"]):
        varied = pull.with_noisy_weights(draw, settings["weight_sigma"], seed)
        for sample in range(samples):
            noise = torch.from_numpy(normal(draw * samples + sample, tuple(image.shape[1:]), seed))
            total += varied(image + settings["sigma"] * noise, target)[0]
    return total / (samples * settings["draws"]), logits


def noisy_weights(network: nn.Module, draw: int, sigma: float, seed: int) -> nn.Module:
    """A copy of the network with every parameter multiplied by 1 + sigma times noise that its name seeds."""
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            own = (seed + zlib.crc32(name.encode())) % (2**31 - 1)
            parameter.mul_(1 + sigma * torch.from_numpy(normal(draw, tuple(parameter.shape), own)))
    return copied


def integrated(
    pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range
) -> Answer:
    """(x - baseline) times the mean of nu at the midpoints of the path."""
    _, logits, target = pull(image, target)
    way = image - settings["baseline"]
    total = torch.zeros_like(image)
    for index in range(settings["samples"]):
        total += pull(settings["baseline"] + way * ((index + 0.5) / settings["samples"]), target)[0]
    return way * total / settings["samples"], logits


def gradcam(pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range) -> Answer:
    """The class activation map in each of the image's channels."""
    _, logits, target = pull(image, target)
    return _map(pull, image, target, settings["interpolation"]).repeat(1, image.shape[1], 1, 1), logits


def guided_cam(
    pull: Pull, image: Tensor, target: Tensor, settings: Mapping[str, Any], limits: Range
) -> Answer:
    """nu(x) times the class activation map."""
    attribution, logits, target = pull(image, target)
    return attribution * _map(pull, image, target, settings["interpolation"]), logits


def _map(pull: Pull, image: Tensor, target: Tensor, interpolation: str) -> Tensor:
    """Return relu(sum_c w_c A_c) in the image's height and width, w_c the mean of the cotangent of A_c."""
    features, cotangent = pull.at_layer(image, target)
    small = torch.einsum("nchw,nc->nhw", features, cotangent.mean((2, 3))).clamp(min=0)[:, None]
    corners = False if interpolation == "bilinear" else None
    return F.interpolate(small, image.shape[2:], mode=interpolation, align_corners=corners)


EAGER: Mapping[str, Callable[[Pull, Tensor, Tensor, Mapping[str, Any], Range], Answer]] = {
    "soft_pullback": plain,
    "gradient": plain,
    "guided_backprop": plain,
    "input_x_pullback": input_times,
    "input_x_gradient": input_times,
    "double_pullback": double,
    "pullback_ascent": ascent,
    "gradient_ascent": ascent,
    "smooth_pullback": smooth,
    "smoothgrad": smooth,
    "fusion_pullback": fusion,
    "fusiongrad": fusion,
    "integrated_pullback": integrated,
    "integrated_gradients": integrated,
    "gradcam": gradcam,
    "guided_gradcam": guided_cam,
    "guided_pullback_cam": guided_cam,
}
