"""The compiler: a network in, a verified program out."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from sptrace.artifact.description import (
    METADATA_KEY,
    SMALLEST_STD,
    Description,
    Preprocessing,
    check_input,
    check_precision,
)
from sptrace.artifact.labels import of_mapping
from sptrace.artifact.links import LINKS, Outputs, check_link
from sptrace.artifact.neuron import Neuron
from sptrace.artifact.numbers import is_finite, plain
from sptrace.artifact.programs import ProgramKind, program_kind
from sptrace.artifact.softening import DEFAULT_PRESET, Softening
from sptrace.compiler import half_precision, left_hard
from sptrace.compiler.assemble import Assembled, assemble
from sptrace.compiler.capture import faithful, from_torch
from sptrace.compiler.capture.harness import harnessed, reason, unwrapped
from sptrace.compiler.capture.source_lines import line_in_network
from sptrace.compiler.composition import compose
from sptrace.compiler.dead_leaves import dead_leaves
from sptrace.compiler.emission import emit, saving
from sptrace.compiler.emission.photographs import take_pictures
from sptrace.compiler.graph.builder import value
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.network import Network
from sptrace.compiler.objectives import cam_layer
from sptrace.compiler.objectives.layout import NO_LAYER, Layout, layout, with_prefix
from sptrace.compiler.objectives.outputs import normalised, read_outputs
from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.compiler.verification.photographs import verify_pictures
from sptrace.compiler.verification.verify import verify
from sptrace.errors import SptraceError, SptraceWarning, UnsupportedError
from sptrace.runtime.checks import outside
from sptrace.version import __version__

Progress = Callable[[str], None]
"""Called with a few words whenever the compiler begins another stage."""

NO_DERIVATIVE = re.compile(r"derivative for aten::(\w+) is not implemented")
"""How PyTorch says it."""


@dataclass(frozen=True)
class Program:
    """A compiled and verified program.

    Attributes:
        module: the program as an ordinary torch.fx.GraphModule. Inputs: image float32 [N, 3, H, W] (prepared, also
            where the artifact takes uint8), target int64
            [N] (-1: the predicted class) or direction float32 [N, units]. Outputs: attribution, of the image's shape,
            logits [N, classes], with a layer activation [N, units], of an ascent image_out.
        description: what the artifact will say about itself.
        model: the artifact.
    """

    module: fx.GraphModule
    description: Description
    model: ir.Model

    @property
    def onnx_model(self) -> bytes:
        """The file that `save` writes.

        Raises:
            SptraceError: its weights exceed what one file holds.
        """
        return saving.to_bytes(self.model)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the artifact, one ONNX file. It appears under its name only when it is whole.

        Weights of more than 1.9 GB, the limit of the format, go to a second file beside it, PATH.data.

        Raises:
            SptraceError: the file cannot be written.
        """
        saving.save(self.model, path)


def compile(
    model: nn.Module,
    example: Tensor,
    *,
    program: str = "soft_pullback",
    softening: Softening | str = DEFAULT_PRESET,
    calibration: Tensor | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
    labels: Sequence[str] | Mapping[int, str] | None = None,
    link: str | None = None,
    keep_link: bool = False,
    precision: str = "fp32",
    input: str = "float32",
    overlay: bool = False,
    progress: Progress = lambda stage: None,
    **options: Any,
) -> Program:
    """Compile a network's explanation (arXiv 2507.22832).

    Arguments:
        model: in eval mode, on the CPU, float32; takes [N, 3, H, W], gives logits [N, classes]. It is not changed.
        example: float32 [N, 3, H, W], all of it in `input_range`; fixes H and W, and the program is verified on it. N
            stays free.
        program: a name of `sptrace.artifact.programs.PROGRAMS`.
        softening: a preset's name, or a `Softening`.
        calibration: pictures like the example, on which a softening with scale="calibration" measures what its
            relative temperatures refer to. None: synthetic pictures, the same everywhere (`dead_leaves`).
        mean: three numbers, of pixels in [0, 1]. Given with `std`, the program's own first step maps `input_range`
            to [0, 1] and normalises, so that image and attribution live in pixel space. None: the model takes
            `image` as it is.
        std: three numbers above 0; see `mean`.
        input_range: the values of black and white in `image`.
        labels: one name per class, kept in the artifact: a list, or a mapping from index to name (id2label). Two names
            of one sigmoid output: class 1 is the output, class 0 its negative.
        link: what makes probabilities of the outputs: "softmax", "sigmoid", "identity" (they are probabilities
            already), "none" (they are plain values). None: the network's end and outputs tell; where they do not, two
            outputs or more are taken for logits of a softmax, and one for a plain value (`objectives.outputs`).
        keep_link: keep a softmax or sigmoid at the network's end. Else it is taken off: `logits` and what is explained
            are what it was applied to, and the link tells what it was.
        precision: "fp32", or "fp16": weights and activations in half precision, for GPUs. Inputs and outputs are
            float32 all the same; verified at `verification.bounds.HALF`.
        input: "float32": the artifact takes what the program takes. "uint8": it takes photographs, uint8
            [N, H, W, 3] of any size, and squeezes them into the example's size itself: antialiased, within one level
            of 255 of Pillow.
        overlay: with input "uint8", let the artifact give `overlay` too, uint8 [N, H, W, 3]: the photograph in light
            grey, red where it speaks for the target and blue where against.
        progress: called with a few words as each stage begins.
        options: settings of the program, as `sptrace programs` lists them; for example clamp="every". Most
            programs explain another neuron than a class with layer="features.8", the path of a module whose output is
            float32 of two to four dimensions; channels="first", "last" or a number, its dimension of channels (None:
            as the graph tells); unit=42, the channel that a target of -1 stands for (None: the largest);
            position=(row, column), or (token,), in place of the sum over all; direction=True, for a direction given
            at run time.

    Raises:
        SptraceError: a mistake in the arguments.
        UnsupportedError: the network contains what sptrace has no rule for.
        VerificationError: the program disagrees with its references.

    Warns:
        SptraceWarning: the softening leaves something hard that is piecewise and no gate, as the description lists.
    """
    from_torch.check(model, example)
    model = unwrapped(model)
    if example.shape[1] != 3:
        raise SptraceError(f"the example must have 3 channels, [N, 3, H, W], not {list(example.shape)}")
    network = Network(
        module=model,
        name=type(model).__name__,
        preprocessing=Preprocessing(
            size=(example.shape[2], example.shape[3]),
            input_range=_range(input_range),
            mean=_triple(mean, "mean"),
            std=_triple(std, "std"),
        ),
        labels=_labels(labels),
        weights="those of the module given to sptrace.compile",
    )
    return compile_network(
        network,
        example,
        program=program,
        softening=Softening.of(softening),
        calibration=calibration,
        options=options,
        link=link,
        keep_link=keep_link,
        precision=precision,
        input=input,
        overlay=overlay,
        progress=progress,
    )


def compile_network(
    network: Network,
    example: Tensor,
    *,
    program: str,
    softening: Softening,
    calibration: Tensor | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    link: str | None = None,
    keep_link: bool = False,
    precision: str = "fp32",
    input: str = "float32",
    overlay: bool = False,
    progress: Progress = lambda stage: None,
) -> Program:
    """Compile a network whose preprocessing is known; arguments and errors as in `compile`."""
    settings = (
        program,
        softening,
        calibration,
        options,
        link,
        keep_link,
        precision,
        input,
        overlay,
        _telling(progress),
    )
    try:
        with torch.inference_mode(False):
            from_torch.check(network.module, example)
            with harnessed(network.module, example) as module:
                return _compile_network(replace(network, module=module), example, *settings)
    except SptraceError:
        raise
    except Exception as error:
        missing, line = NO_DERIVATIVE.search(str(error)), line_in_network(error)
        if missing is not None:
            raise UnsupportedError(
                f"PyTorch has no derivative for {missing[1]}, so that no explanation could be verified: "
                "write the network without it"
            ) from error
        if line is not None:
            raise UnsupportedError(
                f"the network does not run as explaining it takes, with gradients and for any batch ({line}): "
                f"{reason(error)}"
            ) from error
        raise SptraceError(
            f"please report the network, this is an error of sptrace: {reason(error)}"
        ) from error


def _telling(progress: Progress) -> Progress:
    """The caller's function, whose errors are the caller's."""

    def tell(stage: str) -> None:
        try:
            progress(stage)
        except Exception as error:
            raise SptraceError(
                f"progress must be a function of one text, the stage, and fails: {reason(error)}"
            ) from error

    return tell


def _compile_network(
    network: Network,
    example: Tensor,
    program: str,
    softening: Softening,
    calibration: Tensor | None,
    options: Mapping[str, Any],
    link: str | None,
    keep_link: bool,
    precision: str,
    input: str,
    overlay: bool,
    progress: Progress,
) -> Program:
    example = example.detach().clone()  # no history, and no tensor of the caller's inference mode
    kind = program_kind(program)
    softening, settings = kind.softening(softening), kind.settings(options)
    preprocessing = network.preprocessing
    check_precision(precision)
    check_input(input, overlay)
    check_link(link, keep_link)
    _check_scale(preprocessing)
    pictures = _calibration(calibration, example, preprocessing, softening)
    _require_finite(network.module)
    progress("capturing the network")
    _require_in_range(example, preprocessing, "the example has")
    asked = dict(settings)  # what the user said, before the network completes it
    captured, how = _as_it_computes(network, example, kind, settings)
    outputs = _outputs(captured, network, example, link, keep_link)
    _check_objective(settings, outputs)
    progress("building the pullback" if pictures is None else f"measuring layers on {len(pictures)} pictures")
    assembled = _assembled(captured, network, outputs, kind, softening, settings, pictures, how)
    if precision == "fp16":
        half_precision.halve(assembled, example)
    progress("writing ONNX")
    module = compose(program, assembled, settings)
    model = emit(module, network.name)
    progress("verifying")
    hard = _jumps(assembled)
    # Of how the layer is read the reference knows only what the user said.
    read = {name: asked[name] for name in ("channels", "prefix_tokens") if name in asked}
    eager_settings = kind.for_verification(settings | read, hard)
    eager = Eager(program, eager_settings, network.module, preprocessing, softening, pictures, outputs)
    _require_agreement(eager, how, kind)
    with _naming_default(kind, asked, settings), saving.loadable(model) as given:
        verification = verify(given, module, eager, example, hard, half=precision == "fp16")
        if input == "uint8":
            take_pictures(model, preprocessing, overlay)
            with saving.loadable(model) as taking:
                pixels = verify_pictures(taking, given, preprocessing)
            verification = replace(verification, pixels=pixels)
    description = Description(
        version=__version__,
        program=program,
        network=network.name,
        weights=network.weights,
        parameters=sum(parameter.numel() for parameter in network.module.parameters()),
        classes=2 if outputs.is_pair else assembled.classes,
        preprocessing=preprocessing,
        settings=settings,
        softening=softening,
        gates=assembled.gates,
        scales=assembled.scales,
        left_hard=assembled.left_hard,
        labels=network.labels,
        verification=verification,
        precision=precision,
        input=input,
        overlay=overlay,
        link=outputs.link,
        taken_off=outputs.taken_off,
    )
    model.metadata_props[METADATA_KEY] = description.to_json()
    if assembled.left_hard:
        warnings.warn(left_hard.warning(assembled.left_hard), SptraceWarning, stacklevel=4)
    return Program(module, description, model)


@contextmanager
def _naming_default(
    kind: ProgramKind, asked: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[None]:
    """Within this context errors name the layer of a class activation map that nobody chose."""
    try:
        yield
    except SptraceError as error:
        if not kind.is_cam or asked["layer"] is not None:
            raise
        taken = f"the class activation map is that of {settings['layer']!r}, layer= takes another"
        raise type(error)(f"{error} ({taken})") from error


def _require_agreement(eager: Eager, how: Layout, kind: ProgramKind) -> None:
    """Refuse a layer that the graph and the running network tell different things of, unless the user decides."""
    seen, layer = eager.seen, eager.settings["layer"]
    if seen is None:
        return
    if seen.channels != how.channels:
        raise SptraceError(
            f"which dimension of {layer!r} holds its channels is not clear, perhaps {how.channels}: "
            'say channels="first" or "last", or the number of the dimension'
        )
    if (
        kind.is_cam
        and how.tokens is not None
        and (seen.before, seen.grid) != (how.tokens.before, how.tokens.grid)
    ):
        raise SptraceError(
            f"which tokens of {layer!r} are places of the picture is not clear, perhaps those after the first "
            f"{how.tokens.before}: say prefix_tokens=, how many class tokens and the like come first"
        )


def program_of(network: Network, example: Tensor, name: str, softening: Softening) -> fx.GraphModule:
    """A program with its default options as it is compiled, without the file: an ordinary torch.fx.GraphModule."""
    kind = program_kind(name)
    softening, settings = kind.softening(softening), kind.settings({})
    pictures = _calibration(None, example, network.preprocessing, softening)
    with harnessed(network.module, example) as module:
        network = replace(network, module=module)
        captured, how = _captured(network, example, kind, settings)
        outputs = _outputs(captured, network, example)
        assembled = _assembled(captured, network, outputs, kind, softening, settings, pictures, how)
        return compose(name, assembled, settings)


def _as_it_computes(
    network: Network, example: Tensor, kind: ProgramKind, settings: dict[str, Any]
) -> tuple[fx.GraphModule, Layout]:
    """`_captured`, compared with the network; if that is another one while it is traced, traced as if it were not."""
    low, high = network.preprocessing.input_range
    drawn = torch.rand(example[:1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    pictures = normalised(torch.cat([example[:1], low + (high - low) * drawn]), network.preprocessing)
    given = dict(settings)
    with faithful.asked_whether_traced(pretend=False) as asked:
        try:
            captured, how = _captured(network, example, kind, settings)
            faithful.require_faithful(captured, network.module, pictures)
            return captured, how
        except UnsupportedError as error:
            if not asked:
                raise
            first = error
    settings.update(given)
    with faithful.asked_whether_traced(pretend=True):
        try:
            captured, how = _captured(network, example, kind, settings)
            faithful.require_faithful(captured, network.module, pictures)
        except UnsupportedError:
            raise first from None
    return captured, how


def _captured(
    network: Network, example: Tensor, kind: ProgramKind, settings: dict[str, Any]
) -> tuple[fx.GraphModule, Layout]:
    """The network's graph, and how its layer is read; `settings` get what they leave open of that."""
    if kind.is_cam and settings["layer"] is None:
        captured, settings["layer"], how = cam_layer.choose(network.module, example)
    else:
        captured = from_torch.capture(network.module, example, settings["layer"])
        how = _layout(captured, example, settings)
    if settings["layer"] is not None:
        settings["channels"] = how.channels
    if kind.is_cam:
        cam_layer.require_places(how, settings["layer"])
        settings["prefix_tokens"] = None if how.tokens is None else how.tokens.before
    return captured, how


def _layout(captured: fx.GraphModule, example: Tensor, settings: Mapping[str, Any]) -> Layout:
    """How the layer that the settings name is read."""
    layer = settings["layer"]
    if layer is None:
        return NO_LAYER
    how = layout(captured, layer, settings["channels"])
    count = settings.get("prefix_tokens")
    return how if count is None else with_prefix(how, count, layer, captured, example.shape[2:])


def _outputs(
    captured: fx.GraphModule,
    network: Network,
    example: Tensor,
    link: str | None = None,
    keep_link: bool = False,
) -> Outputs:
    """What the outputs are; a link at the graph's end is taken off unless it is to be kept."""
    pictures = torch.cat([example[:1], example[:1].flip(-1)])
    return read_outputs(
        captured,
        normalised(pictures, network.preprocessing),
        network.link if link is None else link,
        keep_link,
        network.labels,
    )


def _check_objective(settings: Mapping[str, Any], outputs: Outputs) -> None:
    if settings.get("objective") == "cross_entropy" and outputs.link not in ("softmax", "sigmoid"):
        raise SptraceError(
            f"the objective cross_entropy is a log-probability, and the network's outputs are {LINKS[outputs.link]}: "
            'say link="softmax" or "sigmoid" if they are logits, or use the objective logit'
        )


def _assembled(
    captured: fx.GraphModule,
    network: Network,
    outputs: Outputs,
    kind: ProgramKind,
    softening: Softening,
    settings: Mapping[str, Any],
    pictures: Tensor | None,
    how: Layout,
) -> Assembled:
    neuron = Neuron.of_cam(settings) if kind.is_cam else Neuron.of(settings)
    lift = captured.meta[from_torch.PARAMETERS] if kind.varies_weights else None
    return assemble(captured, network.preprocessing, softening, neuron, pictures, lift, outputs, how)


def example_image(preprocessing: Preprocessing) -> Tensor:
    """Something to verify on: a smooth picture in the input's range, float32 [1, 3, H, W], the same everywhere."""
    height, width = preprocessing.size
    low, high = preprocessing.input_range
    sides = [torch.linspace(0, 1, count, dtype=torch.float32) for count in (height, width)]
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    waves = [
        torch.sin(2 * torch.pi * (frequency * rows + phase))
        * torch.cos(2 * torch.pi * (3 * frequency * columns - phase))
        for frequency, phase in ((2, 0.1), (3, 0.4), (5, 0.7))
    ]
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, height, width, generator=generator, dtype=torch.float32) - 0.5
    pixels = (0.5 + 0.3 * torch.stack(waves) + 0.3 * noise).clamp(0, 1)
    return (low + (high - low) * pixels)[None]


def _require_finite(module: nn.Module) -> None:
    """Refuse weights that no network can compute with; buffers may hold infinities, as masks of attention do."""
    for name, parameter in module.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise SptraceError(
                f"the parameter {name} holds NaN or infinite values: give weights that are trained"
            )
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and buffer.isnan().any():
            raise SptraceError(f"the buffer {name} holds NaN: give weights that are trained")


def _jumps(assembled: Assembled) -> bool:
    """Is there a gate, or a maximum, whose pullback jumps where float32 cannot tell on which side a number lies?"""
    return any(gate.rule in ("hard", "guided") for gate in assembled.gates) or any(
        node.target is torch.ops.aten.eq.Tensor and value(node.args[0]).is_floating_point()
        for node in assembled.module.graph.nodes
        if facts(node).adjoint
    )


def _calibration(
    given: Tensor | None, example: Tensor, preprocessing: Preprocessing, softening: Softening
) -> Tensor | None:
    """The pictures that relative temperatures are measured on; None: none are, or each picture is its own."""
    if softening.is_relative and softening.scale == "calibration":
        pictures = dead_leaves(preprocessing) if given is None else given
        from_torch.check_picture(pictures, "the calibration")
        if pictures.shape[1:] != example.shape[1:]:
            raise SptraceError(
                f"the calibration pictures are {list(pictures.shape[1:])}, the example is {list(example.shape[1:])}: "
                "give both in the same size"
            )
        _require_in_range(pictures, preprocessing, "the calibration pictures have")
        return pictures.detach().clone()
    if given is not None:
        raise SptraceError(
            "calibration pictures are for relative temperatures measured when compiling: "
            'use a softening like Softening(tau={"relu": "0.6std"}, scale="calibration")'
        )
    return None


def _require_in_range(pictures: Tensor, preprocessing: Preprocessing, what: str) -> None:
    """Refuse pictures of another scale: gates would be measured and verified at numbers that no picture has."""
    values = outside(pictures.detach().numpy(), preprocessing.input_range)
    if values is not None:
        raise SptraceError(
            f"{what} {values}: scale pictures so, or give input_range=(low, high), the values of black and white "
            "in yours"
        )


def _range(input_range: object) -> tuple[float, float]:
    black_white = _numbers(input_range, 2)
    if black_white is None or not black_white[0] < black_white[1]:
        raise SptraceError(
            f"input_range must be two numbers, black and white, with black below white, not {input_range!r}"
        )
    return black_white[0], black_white[1]


def _triple(given: object, name: str) -> tuple[float, float, float] | None:
    if given is None:
        return None
    channels = _numbers(given, 3)
    if channels is None or (name == "std" and min(channels) < SMALLEST_STD):
        above = f" above 0, at least {SMALLEST_STD:g}" if name == "std" else ""
        raise SptraceError(f"{name} must be three numbers{above}, not {given!r}")
    return channels[0], channels[1], channels[2]


def _numbers(given: object, count: int) -> list[float] | None:
    """The numbers of a sequence of `count` that float32 can compute with; None if it is something else."""
    if isinstance(given, str | bytes | Mapping | Set):  # sets have no order
        return None
    try:
        numbers = [plain(number) for number in given]  # type: ignore[attr-defined]  # what fails is answered here
        numbers = [number if isinstance(number, bool | str) else float(number) for number in numbers]
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count and all(map(is_finite, numbers)) else None


def _check_scale(preprocessing: Preprocessing) -> None:
    """Warn of a mean that no pixel has: of pixels of 0 to 255, as a rule."""
    mean = preprocessing.mean
    if mean is not None and not all(0 <= number <= 1 for number in mean):
        warnings.warn(
            f"mean is {mean}, and pixels are 0 to 1 there: if it is of pixels of 0 to 255, divide mean and std by 255",
            SptraceWarning,
            stacklevel=2,
        )


def _labels(given: Sequence[str] | Mapping[int, str] | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = of_mapping(given) if isinstance(given, Mapping) else given
    labels = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str | Set) else ()
    if not labels or not all(isinstance(label, str) for label in labels):
        raise SptraceError(
            "labels must be a list of texts, one name per class, or a mapping from 0, 1, ... to texts"
        )
    return labels
