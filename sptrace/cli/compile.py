"""`sptrace compile`: a network in, one ONNX file out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from sptrace import models
from sptrace.artifact.description import Description, Measured, Verification, check_input, check_precision
from sptrace.artifact.files import require_writable
from sptrace.artifact.links import LINKS, check_link
from sptrace.artifact.programs import PROGRAMS, Setting, program_kind
from sptrace.artifact.softening import DEFAULT_PRESET, PRESETS, Softening
from sptrace.cli.normalisation import Normalisation
from sptrace.cli.settings import read_settings
from sptrace.cli.softening import read_photographs, read_softening
from sptrace.errors import SptraceError
from sptrace.models import labels as class_names

if TYPE_CHECKING:
    from sptrace.compiler.network import Network

MODEL_HELP = (
    f"One of {', '.join(models.names())}; torchvision:NAME; timm:NAME; or a .pt2 file saved with torch.export "
    "(loading one can run code: only from people you trust)."
)


def compile_(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to write.")],
    program: Annotated[str, typer.Option(help=f"What to compute: {', '.join(PROGRAMS)}.")] = "soft_pullback",
    weights: Annotated[
        Path | None,
        typer.Option(
            help="State dict, .safetensors or .pth.", show_default="the library's pretrained weights"
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Class names: a file with one a line, a .json list, a config.json with id2label, or imagenet.",
            show_default="those that come with the library's weights",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Height and width of the input in pixels.", show_default="the network's own"),
    ] = None,
    preset: Annotated[str, typer.Option(help=f"Softening: {', '.join(PRESETS)}.")] = DEFAULT_PRESET,
    tau: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=TAU",
            help="Temperature of a kind of gate: relu=0.6, or relative to its input: relu=0.6std, relu=2rms.",
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND=RULE", help="Rule of a kind of gate, e.g. max_pool=hard."),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN:KIND=VALUE",
            help="Temperature or rule in some modules alone, e.g. 'layer4.*:relu=0.3'.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Photographs on which relative temperatures are measured once, and not for every picture.",
        ),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="Where relative temperatures come from: sample, every picture; or calibration, measured once when "
            "compiling, without --calibrate on synthetic pictures.",
            show_default="the preset's",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of the program; `sptrace programs` lists them."),
    ] = None,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Explain channels of this module, e.g. features.8, in place of classes. Of Grad-CAM programs: "
            "where the map is taken.",
        ),
    ] = None,
    unit: Annotated[
        int | None,
        typer.Option(help="The layer's channel to explain if none is named.", show_default="the most active"),
    ] = None,
    position: Annotated[
        str | None,
        typer.Option(
            metavar="ROW,COLUMN",
            help="Explain the channel there, or in the token of one NUMBER.",
            show_default="summed over all",
        ),
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(
            metavar="first|last|DIM",
            help="Which dimension of the layer's output holds its channels.",
            show_default="what the graph tells",
        ),
    ] = None,
    direction: Annotated[
        bool, typer.Option("--direction", help="Explain a direction given at run time, in place of a target.")
    ] = False,
    link: Annotated[
        str | None,
        typer.Option(
            help=f"What makes probabilities of the network's outputs: {', '.join(LINKS)}.",
            show_default="what the network's end tells",
        ),
    ] = None,
    keep_link: Annotated[
        bool,
        typer.Option(
            "--keep-link",
            help="Explain what a softmax or sigmoid at the network's end gives, not what it is given.",
        ),
    ] = False,
    precision: Annotated[
        str, typer.Option(help="fp32, or fp16 for GPUs: half the file, float32 inputs and outputs.")
    ] = "fp32",
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="float32: prepared images. uint8: photographs of any size, which the artifact prepares itself.",
        ),
    ] = "float32",
    overlay: Annotated[
        bool,
        typer.Option(
            "--overlay", help="With --input uint8: let the artifact draw the explanation over the photograph."
        ),
    ] = False,
    mean: Annotated[
        str | None,
        typer.Option(metavar="R,G,B", help="Normalisation of pixels in 0..1, in place of the network's."),
    ] = None,
    std: Annotated[str | None, typer.Option(metavar="R,G,B", help="See --mean.")] = None,
) -> None:
    """Compile a network's explanation into one ONNX file, and verify it."""
    if output.suffix != ".onnx":
        raise SptraceError(f"cannot write the artifact to {output}: end its name in .onnx")
    require_writable(output)
    check_precision(precision)
    check_input(input_, overlay)
    if link is not None:
        check_link(link)
    form: dict[str, Any] = {"precision": precision, "input": input_, "overlay": overlay}
    form |= {"link": link, "keep_link": keep_link}
    options = _with_neuron(read_settings(option), layer, unit, position, channels, direction)
    program_kind(program).settings(options)
    if calibrate and scale == "sample":
        raise SptraceError(
            "--calibrate measures once what --scale sample takes from every picture: leave one of them out"
        )
    softening = read_softening(preset, tau, rule, override, "calibration" if calibrate else scale)
    normalisation = Normalisation.read(mean, std)
    names = None if labels is None else class_names.read(labels)
    console = Console(highlight=False, markup=False, emoji=False)
    start = time.perf_counter()
    with Console(stderr=True).status("importing torch") as status:
        show = _stages(status.update)
        show("loading the network")
        network = normalisation.of(models.resolve(model, weights=weights, size=size))
        network = network if names is None else replace(network, labels=names)
        pictures = read_photographs(calibrate, network.preprocessing) if calibrate else None
        description = _compile(network, output, program, softening, pictures, options, form, show)
    seconds = time.perf_counter() - start
    console.print(_verified(description), soft_wrap=True)
    console.print(f"saved {output} ({output.stat().st_size / 1e6:.1f} MB) in {seconds:.1f} s", soft_wrap=True)


def _with_neuron(
    options: dict[str, Setting],
    layer: str | None,
    unit: int | None,
    position: str | None,
    channels: str | None,
    direction: bool,
) -> dict[str, Setting]:
    """The program's options with those that have flags of their own."""
    flags: dict[str, Setting] = {
        "layer": layer,
        "unit": unit,
        "position": None if position is None else _position(position),
        "channels": int(channels) if channels is not None and channels.isdecimal() else channels,
        "direction": direction or None,
    }
    given = {name: setting for name, setting in flags.items() if setting is not None}
    for name in given.keys() & options.keys():
        raise SptraceError(f"--{name} and --option {name}= say the same: leave one of them out")
    return {**options, **given}


def _position(text: str) -> tuple[int, ...]:
    numbers = text.split(",")
    if len(numbers) > 2 or not all(number.strip().isdecimal() for number in numbers):
        raise SptraceError(
            f"--position {text}: write row and column with a comma between, for example 3,4, "
            "or the number of a token"
        )
    return tuple(int(number) for number in numbers)


def _compile(
    network: Network,
    output: Path,
    program: str,
    softening: Softening,
    pictures: NDArray[np.float32] | None,
    options: dict[str, Setting],
    form: dict[str, Any],
    show: Callable[[str], None],
) -> Description:
    # Only now: a wrong model name should not wait for torch, and its absence is the model source's error to tell.
    import torch

    from sptrace.compiler.compile import compile_network, example_image

    compiled = compile_network(
        network,
        example_image(network.preprocessing),
        program=program,
        softening=softening,
        calibration=None if pictures is None else torch.from_numpy(pictures),
        options=options,
        progress=show,
        **form,
    )
    show("saving")
    compiled.save(output)
    return compiled.description


def _stages(update: Callable[[str], None]) -> Callable[[str], None]:
    """Progress with the time that the stages before have taken."""
    start = time.perf_counter()

    def show(stage: str) -> None:
        update(f"{stage} [dim]({time.perf_counter() - start:.0f} s so far)[/]")

    return show


def _verified(description: Description) -> str:
    verification = description.verification
    assert verification is not None
    gates = ", ".join(
        f"{gate.count} {gate.kind} ({gate.rule}{'' if gate.tau is None else f', tau {gate.temperature}'})"
        for gate in description.gates
    )
    batches = " and ".join(str(batch.batch) for batch in verification.batches)
    taken_off = f"; {description.taken_off} at its end taken off" if description.taken_off else ""
    return (
        f"{description.program} of {description.network}{_neuron(description)}; gates: {gates or 'none'}\n"
        f"outputs: {LINKS[description.link]}{taken_off}\n"
        f"verified against eager PyTorch at batch sizes {batches}: {_errors(verification)}"
    )


def _errors(verification: Verification) -> str:
    """The largest errors, each with the bound that it was held to."""
    worst = max(verification.batches, key=lambda batch: max(_of_attributions(batch)))
    attribution = f"attribution {max(_of_attributions(worst)):.1e} (allowed {verification.allowed(worst):.0e}"
    if worst.doubt:
        attribution += f", for hard gates too close to call move it by {worst.doubt:.0e}"
    values = max(
        error
        for batch in verification.batches
        for error in (batch.logits_to_module, batch.logits_to_eager, batch.activation_to_eager or 0.0)
    )
    return f"{attribution}), logits {values:.1e} (allowed {verification.of_values:.0e})"


def _of_attributions(batch: Measured) -> tuple[float, float]:
    return batch.attribution_to_module, batch.attribution_to_eager


def _neuron(description: Description) -> str:
    """What is explained, or where the map is taken, if that is a layer."""
    settings = description.settings
    if settings.get("layer") is None:
        return ""
    named = [f"{name} {settings[name]}" for name in ("unit", "position") if settings.get(name) is not None]
    return ", ".join([f" at {settings['layer']}", *named])
