"""How far program `gradient` is from float64 autograd of the original network, which shares nothing with it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from sptrace.answers import logits_of
from sptrace.emission import emit, saving
from sptrace.models.network import Network
from sptrace.softening import Softening
from sptrace.verification.batch_norms import ContiguousCotangents
from sptrace.verification.verify import quiet


class Distances(NamedTuple):
    """The largest over the pictures of ||given - wanted|| / ||wanted||, with `wanted` from float64 autograd.

    Attributes:
        program: of the ONNX file in onnxruntime.
        autograd: of PyTorch's own autograd in float32. Gates close to their threshold fall on either side in float32,
            so this is what the first has to be read beside.
    """

    program: float
    autograd: float


def distances(network: Network, example: Tensor, seed: int = 1, count: int = 2) -> Distances:
    """Compile `gradient` of a network and measure it on pictures that the compiler has not seen.

    Arguments:
        network: its module in eval mode; mean and std are applied here by hand.
        example: float32 [1, 3, H, W] in the network's input range; what the program is compiled with.
        seed: of the pictures: smooth blobs with some noise, within the input's range.
        count: how many pictures.
    """
    from sptrace.compiler import program_of  # which verifies with this package

    model = emit(program_of(network, example, "gradient", Softening("hard")), network.name)
    with saving.loadable(model) as given:
        session = onnxruntime.InferenceSession(given, quiet(), providers=["CPUExecutionProvider"])
    images = _pictures(network, count, seed)
    double = copy.deepcopy(network.module).double()
    farthest = Distances(0.0, 0.0)
    for image in images.unsqueeze(1).unbind():
        target = int(_logits(network.module, network, image).argmax())
        wanted = _gradient(double, network, image.double(), target)
        feeds = {"image": image.numpy(), "target": np.array([target])}
        (program,) = session.run(["attribution"], feeds)
        autograd = _gradient(network.module, network, image, target)
        here = Distances(*(_distance(given, wanted) for given in (torch.from_numpy(program), autograd)))
        farthest = Distances(*(max(pair) for pair in zip(farthest, here, strict=True)))
    return farthest


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
    """Infinite if only one of them is 0."""
    norm = float(wanted.norm())
    difference = float((given.double() - wanted).norm())
    return difference / norm if norm > 0 else (0.0 if difference == 0 else float("inf"))
