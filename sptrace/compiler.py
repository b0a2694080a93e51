"""The compiler: a network in, a verified program out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor, fx, nn

from sptrace import capture
from sptrace.artifact import METADATA_KEY, Description, Preprocessing
from sptrace.assemble import assemble
from sptrace.emission import emit
from sptrace.errors import SptraceError
from sptrace.files import replacing
from sptrace.models.network import Network
from sptrace.programs import program_kind
from sptrace.softening import Softening
from sptrace.verification.verify import verify
from sptrace.version import __version__

Progress = Callable[[str], None]
"""Called with a few words whenever the compiler begins another stage."""


@dataclass(frozen=True)
class Program:
    """A compiled and verified program.

    Attributes:
        module: the program as an ordinary torch.fx.GraphModule. Inputs: image float32 [N, 3, H, W], target int64
            [N] (-1: the predicted class). Outputs: attribution, of the image's shape, and logits [N, classes].
        description: what the artifact will say about itself.
        onnx_model: the artifact, as `save` writes it.
    """

    module: fx.GraphModule
    description: Description
    onnx_model: bytes

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact, one ONNX file. It appears under its name only when it is whole.

        Raises:
            SptraceError: the file cannot be written.
        """
        with replacing(path) as temporary:
            temporary.write_bytes(self.onnx_model)


def compile(
    model: nn.Module,
    example: Tensor,
    *,
    program: str = "soft_pullback",
    softening: Softening | str = "paper",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
    labels: Sequence[str] | None = None,
    progress: Progress = lambda stage: None,
) -> Program:
    """Compile a network's explanation (arXiv 2507.22832).

    Arguments:
        model: in eval mode, on the CPU, float32; takes [N, 3, H, W], gives logits [N, classes]. It is not changed.
        example: float32 [N, 3, H, W] in `input_range`; fixes H and W, and the program is verified on it. N stays free.
        program: a name of `sptrace.programs.PROGRAMS`.
        softening: a preset's name, or a `Softening`.
        mean: three numbers, of pixels in [0, 1]. Given with `std`, the program's own first step maps `input_range`
            to [0, 1] and normalises, so that image and attribution live in pixel space. None: the model takes
            `image` as it is.
        std: three numbers above 0; see `mean`.
        input_range: the values of black and white in `image`.
        labels: one name per class, kept in the artifact.
        progress: called with a few words as each stage begins.

    Raises:
        SptraceError: a mistake in the arguments.
        UnsupportedError: the network contains what sptrace has no rule for.
        VerificationError: the program disagrees with its references.
    """
    capture.check(model, example)
    network = Network(
        module=model,
        name=type(model).__name__,
        preprocessing=Preprocessing(
            size=(example.shape[2], example.shape[3]),
            input_range=_range(input_range),
            mean=_triple(mean, "mean"),
            std=_triple(std, "std"),
        ),
        labels=None if labels is None else tuple(labels),
        weights="those of the module given to sptrace.compile",
    )
    return compile_network(
        network, example, program=program, softening=Softening.of(softening), progress=progress
    )


def compile_network(
    network: Network,
    example: Tensor,
    *,
    program: str,
    softening: Softening,
    progress: Progress = lambda stage: None,
) -> Program:
    """Compile a network whose preprocessing is known; arguments and errors as in `compile`."""
    softening = program_kind(program).softening(softening)
    preprocessing = network.preprocessing
    if (preprocessing.mean is None) != (preprocessing.std is None):
        raise SptraceError("mean and std belong together: give both or neither")
    progress("capturing the network")
    captured = capture.capture(network.module, example)
    progress("building the pullback")
    assembled = assemble(captured, preprocessing, softening)
    if network.labels is not None and len(network.labels) != assembled.classes:
        raise SptraceError(
            f"{len(network.labels)} labels for {assembled.classes} classes: give one name per class"
        )
    progress("writing ONNX")
    proto = emit(assembled.module, network.name)
    progress("verifying")
    verification = verify(
        proto.SerializeToString(), assembled, network.module, example, preprocessing, softening
    )
    description = Description(
        version=__version__,
        program=program,
        network=network.name,
        weights=network.weights,
        parameters=sum(parameter.numel() for parameter in network.module.parameters()),
        classes=assembled.classes,
        preprocessing=preprocessing,
        preset=softening.preset,
        gates=assembled.gates,
        labels=network.labels,
        verification=verification,
    )
    return Program(assembled.module, description, _described(proto, description))


def example_image(preprocessing: Preprocessing) -> Tensor:
    """Something to verify on: a smooth picture in the input's range, float32 [1, 3, H, W], the same everywhere."""
    height, width = preprocessing.size
    low, high = preprocessing.input_range
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    waves = [
        torch.sin(2 * torch.pi * (frequency * rows + phase))
        * torch.cos(2 * torch.pi * (3 * frequency * columns - phase))
        for frequency, phase in ((2, 0.1), (3, 0.4), (5, 0.7))
    ]
    noise = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0)) - 0.5
    pixels = (0.5 + 0.3 * torch.stack(waves) + 0.3 * noise).clamp(0, 1)
    return (low + (high - low) * pixels)[None]


def _described(proto: onnx.ModelProto, description: Description) -> bytes:
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, description.to_json()
    return bytes(proto.SerializeToString(deterministic=True))


def _range(input_range: Sequence[float]) -> tuple[float, float]:
    low, high = input_range
    if not low < high:
        raise SptraceError(
            f"input_range must be (black, white) with black below white, not {tuple(input_range)}"
        )
    return float(low), float(high)


def _triple(numbers: Sequence[float] | None, name: str) -> tuple[float, float, float] | None:
    if numbers is None:
        return None
    values = tuple(float(number) for number in numbers)
    if len(values) != 3 or (name == "std" and min(values) <= 0):
        raise SptraceError(
            f"{name} must be three numbers{' above 0' if name == 'std' else ''}, not {list(values)}"
        )
    return values[0], values[1], values[2]
