"""How far program `gradient` is from float64 autograd of the original network, which shares nothing with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from sptrace.artifact.description import SPREAD
from sptrace.artifact.softening import Softening
from sptrace.compiler.capture.answers import logits_of
from sptrace.compiler.compile import program_of
from sptrace.compiler.emission import emit, saving
from sptrace.compiler.network import Network
from sptrace.compiler.reference.batch_norms import ContiguousCotangents
from sptrace.compiler.reference.eager import reference
from sptrace.compiler.verification.bounds import JITTER, TOLERANCE
from sptrace.compiler.verification.references import DOUBTS
from sptrace.compiler.verification.verify import quiet


class Distances(NamedTuple):
    """The largest over the pictures of ||given - wanted|| / ||wanted||, with `wanted` from float64 autograd.

    Attributes:
        program: of the ONNX file in onnxruntime.
        autograd: of PyTorch's own autograd in float32. Gates close to their threshold fall on either side in float32.
        doubt: of float64 autograd where inputs of gates that float32 cannot decide are thrown to either side; what the
            first may be. 0 where that is below `TOLERANCE`, and nobody asks.
    """

    program: float
    autograd: float
    doubt: float

    @property
    def are_explained(self) -> bool:
        """Is the program as near as gates in doubt let it be? They are thrown together, a program's fall alone."""
        return self.program <= TOLERANCE + SPREAD * self.doubt


def distances(network: Network, example: Tensor, seed: int = 1, count: int = 2) -> Distances:
    """Compile `gradient` of a network and measure it on pictures that the compiler has not seen.

    Arguments:
        network: its module in eval mode; mean and std are applied here by hand.
        example: float32 [1, 3, H, W] in the network's input range; what the program is compiled with.
        seed: of the pictures: smooth blobs with some noise, within the input's range.
        count: how many pictures.
    """
    model = emit(program_of(network, example, "gradient", Softening("hard")), network.name)
    images = _pictures(network, count, seed)[:, None].unbind()
    targets = [int(_logits(network.module, network, image).argmax()) for image in images]
    autograd = [_gradient(network.module, network, *each) for each in zip(images, targets, strict=True)]
    # Before the session, whose memory a large network's float64 would not find room beside.
    double = copy.deepcopy(network.module).double()
    wanted = [
        _gradient(double, network, image.double(), target)
        for image, target in zip(images, targets, strict=True)
    ]
    given = _attributions(model, images, targets)
    far = [_distance(*pair) for pair in zip(given, wanted, strict=True)]
    return Distances(
        program=max(far),
        autograd=max(_distance(*pair) for pair in zip(autograd, wanted, strict=True)),
        doubt=max(
            doubt(double, network, image, target) if distance > TOLERANCE else 0.0
            for image, target, distance in zip(images, targets, far, strict=True)
        ),
    )


def _attributions(model: ir.Model, images: Sequence[Tensor], targets: Sequence[int]) -> list[Tensor]:
    """What the file answers, each float32 [1, 3, H, W]."""
    with saving.loadable(model) as given:
        session = onnxruntime.InferenceSession(given, quiet(), providers=["CPUExecutionProvider"])
    feeds = (
        {"image": image.numpy(), "target": np.array([target])}
        for image, target in zip(images, targets, strict=True)
    )
    return [torch.from_numpy(session.run(["attribution"], each)[0]) for each in feeds]


def doubt(double: nn.Module, network: Network, image: Tensor, target: int) -> float:
    """How far float64 autograd moves when inputs of hard gates that float32 cannot decide are thrown to either side.

    Arguments:
        double: the network's module in float64.
        network: how its input is prepared.
        image: float32 [1, 3, H, W].
        target: the class.
    """
    how = network.preprocessing
    usual, *thrown = (
        reference(
            double,
            image.double(),
            torch.tensor([target]),
            rules={},
            mean=how.mean,
            std=how.std,
            input_range=how.input_range,
            jitter=jitter,
            seed=seed,
        )[0]
        for jitter, seed in [(0.0, 0), *((JITTER, seed) for seed in range(DOUBTS))]
    )
    return max(_distance(one, usual) for one in thrown)


def _pictures(network: Network, count: int, seed: int) -> Tensor:
    height, width = network.preprocessing.size
    low, high = network.preprocessing.input_range
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 7, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    pixels = smooth + 0.1 * torch.randn(count, 3, height, width, generator=generator)
    return low + (high - low) * pixels.clamp(0, 1)


def _logits(module: nn.Module, network: Network, image: Tensor) -> Tensor:
    preprocessing = network.preprocessing
    if preprocessing.mean is not None and preprocessing.std is not None:
        low, high = preprocessing.input_range
        mean, std = (
            torch.tensor(numbers, dtype=image.dtype).reshape(1, 3, 1, 1)
            for numbers in (preprocessing.mean, preprocessing.std)
        )
        image = ((image - low) / (high - low) - mean) / std
    return logits_of(module(image))


def _gradient(module: nn.Module, network: Network, image: Tensor, target: int) -> Tensor:
    image = image.detach().requires_grad_()
    with torch.enable_grad(), ContiguousCotangents():
        (gradient,) = torch.autograd.grad(_logits(module, network, image)[0, target], image)
    return gradient


def _distance(given: Tensor, wanted: Tensor) -> float:
    """Infinite if only one of them is 0, or one is NaN."""
    norm = float(wanted.norm())
    difference = float((given.double() - wanted).norm())
    if difference == 0:
        return 0.0
    return difference / norm if norm > 0 and math.isfinite(difference) else math.inf
