"""The explanations that are compared: programs in onnxruntime, and captum's methods in PyTorch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sptrace.artifact.programs import program_kind
from sptrace.artifact.softening import DEFAULT_PRESET, Softening
from sptrace.errors import SptraceError
from sptrace.runtime.explainer import load

if TYPE_CHECKING:
    from torch import nn

    from sptrace.compiler.network import Network

Explain = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]

DEFAULT = (
    *("gradient", "soft_pullback", "pullback_ascent"),
    *("smoothgrad", "integrated_gradients", "guided_gradcam"),
)
"""Compared where nobody says otherwise."""

BATCH = 8
"""Pictures at a time."""


@dataclass(frozen=True)
class Method:
    """Something that explains.

    Arguments:
        name: as it stands in the report.
        explain: attributions, float32 [N, 3, H, W], of images of that shape in [-1, 1] and targets, int64 [N].
        artifact: the file that explains; None for captum's methods.
        passes: how often an explanation runs the network, roughly; 1 for a gradient.
    """

    name: str
    explain: Explain
    artifact: Path | None = None
    passes: int = 1


def of_artifact(path: Path, threads: int | None = None) -> Method:
    """The method of an artifact, named after its program; what it cannot be compared by raises SptraceError."""
    explainer = load(path, threads=threads)
    description = explainer.description
    if explainer.takes_pictures or explainer.takes_direction or explainer.units != explainer.classes:
        raise SptraceError(
            f"{path} does not explain classes of prepared images: compile it with --input float32, "
            "and without --layer or --direction"
        )
    if explainer.input_range != (-1.0, 1.0):
        raise SptraceError(
            f"{path} takes images in {explainer.input_range}: the metrics are defined for [-1, 1]"
        )

    explainer.warned = True  # the metrics add noise to pictures, beyond white and black too

    def explain(images: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.concatenate(
            [
                explainer.attribute(images[first : first + BATCH], targets[first : first + BATCH])
                for first in range(0, len(images), BATCH)
            ]
        )

    return Method(description.program, explain, path, _passes(description.settings))


def named(name: str) -> tuple[str, Softening]:
    """Program and softening that PROGRAM, or PROGRAM@PRESET, stands for; SptraceError if there is no such thing."""
    program, _, preset = name.partition("@")
    program_kind(program)
    return program, Softening(preset or DEFAULT_PRESET)


def compiled(
    network: Network, name: str, path: Path, progress: Callable[[str], None], threads: int | None
) -> Method:
    """A program of a network, compiled to `path` unless it is there.

    Arguments:
        network: the network.
        name: of a program, or PROGRAM@PRESET.
        path: of the artifact.
        progress: called with a few words.
        threads: of onnxruntime.
    """
    program, softening = named(name)
    if not path.is_file():
        from sptrace.compiler.compile import compile_network, example_image

        progress(f"compiling {name}")
        compile_network(
            network, example_image(network.preprocessing), program=program, softening=softening
        ).save(path)
    return replace(of_artifact(path, threads), name=name)


CAPTUM = (
    *("saliency", "input_x_gradient", "integrated_gradients", "smoothgrad"),
    *("guided_backprop", "guided_gradcam", "deconvolution"),
)
"""What stands for a method of captum after ``captum:``. Saliency is signed here: the gradient."""


_CAPTUM = threading.Lock()


def of_captum(network: Network, name: str) -> Method:
    """One of captum's methods, on the network with its normalisation.

    Raises:
        SptraceError: captum is not installed, or has no such method here.
    """
    if name not in CAPTUM:
        raise SptraceError(f"there is no method captum:{name}: use one of {', '.join(CAPTUM)}")
    try:
        import captum.attr
    except ModuleNotFoundError as error:
        raise SptraceError("captum is not installed: pip install captum") from error
    import torch

    model = _normalised(network)
    settings: dict[str, Any] = {}
    if name == "guided_gradcam":
        from sptrace.compiler.compile import example_image
        from sptrace.compiler.objectives.cam_layer import choose

        _, path, how = choose(network.module, example_image(network.preprocessing))
        if (how.channels, how.places) != (1, (2, 3)):
            raise SptraceError(
                f"captum:guided_gradcam takes channels first, and {path!r} of {network.name} "
                "has them elsewhere: leave it out"
            )
        method: Any = captum.attr.GuidedGradCam(model, network.module.get_submodule(path))
        settings = {"interpolate_mode": "bilinear"}
    elif name == "smoothgrad":
        method = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
        settings = {"nt_samples": 50, "nt_samples_batch_size": 10, "stdevs": 0.15, "abs": False}
    else:
        kind: Any = {
            "saliency": captum.attr.Saliency,
            "input_x_gradient": captum.attr.InputXGradient,
            "integrated_gradients": captum.attr.IntegratedGradients,
            "guided_backprop": captum.attr.GuidedBackprop,
            "deconvolution": captum.attr.Deconvolution,
        }[name]
        method = kind(model)
        if name == "saliency":
            settings = {"abs": False}
        elif name == "integrated_gradients":
            settings = {"internal_batch_size": 16}

    def explain(images: NDArray[np.float32], targets: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = []
        for image, target in zip(images, targets, strict=True):
            given = torch.from_numpy(np.ascontiguousarray(image[None]))
            with _CAPTUM:  # captum hangs hooks on the model, and draws from torch's global generator
                torch.manual_seed(0)
                parts.append(method.attribute(given, target=int(target), **settings).detach().numpy())
        return np.concatenate(parts).astype(np.float32)

    return Method(
        f"captum:{name}", explain, None, 50 if name in ("smoothgrad", "integrated_gradients") else 1
    )


def _normalised(network: Network) -> nn.Module:
    """The network on images in its preprocessing's range."""
    import torch
    from torch import nn

    preprocessing = network.preprocessing
    if preprocessing.mean is None or preprocessing.std is None:
        return network.module
    low, high = preprocessing.input_range
    mean, std = (
        torch.tensor(numbers).reshape(1, 3, 1, 1) for numbers in (preprocessing.mean, preprocessing.std)
    )

    class Normalised(nn.Module):
        """Pixels to what the network was trained with, then the network."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network.module

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            """Logits of images in the range."""
            logits: torch.Tensor = self.network(((image - low) / (high - low) - mean) / std)
            return logits

    return Normalised().eval()


def _passes(settings: dict[str, Any]) -> int:
    numbers = [
        settings[name] for name in ("samples", "draws", "steps") if isinstance(settings.get(name), int)
    ]
    return int(np.prod(numbers)) if numbers else 1
