"""`sptrace inspect`: what an artifact says about itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from sptrace.artifact.description import METADATA_KEY, Description, Verification
from sptrace.artifact.links import LINKS
from sptrace.artifact.onnx_file import OnnxFile, Value, outline
from sptrace.deploy.portability import Portability, portability
from sptrace.errors import SptraceError


def inspect(
    artifact: Annotated[Path, typer.Argument(help="ONNX file written by `sptrace compile`.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    portable: Annotated[
        bool, typer.Option("--portability", help="Show which runtimes have the artifact's operators.")
    ] = False,
) -> None:
    """Show what an artifact says about itself: its program, its gates, its interface, how it was verified."""
    file = outline(artifact)
    if METADATA_KEY not in file.metadata:
        raise SptraceError(
            f"{artifact} was not written by sptrace: compile the network with `sptrace compile`"
        )
    description = Description.from_json(file.metadata[METADATA_KEY])
    runtimes = portability(file) if portable else []
    if as_json:
        outlined = {key: value for key, value in asdict(file).items() if key != "metadata"}
        everything = {"file": str(artifact), **outlined, "description": description.as_dict()}
        if portable:
            everything["portability"] = [asdict(runtime) for runtime in runtimes]
        typer.echo(json.dumps(everything, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(_summary(artifact, file, description))
    for title, table in _portability(file, runtimes) if portable else _tables(file, description):
        console.print(f"\n{title}", soft_wrap=True)
        console.print(table)


def _summary(artifact: Path, file: OnnxFile, description: Description) -> Table:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in file.opsets.items())
    return _grid(
        ("file", str(artifact)),
        ("size", f"{file.size / 1e6:.1f} MB"),
        ("format", f"ONNX IR {file.ir_version}, opset {opsets}"),
        ("program", description.program),
        *([("settings", _settings(description))] if description.settings else []),
        ("softening", _softening(description)),
        ("precision", description.precision),
        ("network", description.network),
        ("weights", description.weights),
        ("parameters", f"{description.parameters:,}"),
        *([("left hard", ", ".join(map(str, description.left_hard)))] if description.left_hard else []),
        ("classes", f"{description.classes}{'' if description.labels else ' (without names)'}"),
        ("outputs", _outputs(description)),
        ("written by", f"sptrace {description.version}"),
    )


def _outputs(description: Description) -> str:
    """What `logits` are, and what was taken off the network's end."""
    taken_off = description.taken_off
    before = "" if taken_off is None else f"; the network ends in {taken_off}, which was taken off"
    return f"{LINKS[description.link]} (link {description.link}){before}"


def _softening(description: Description) -> str:
    softening = description.softening
    overrides = f", {len(softening.overrides)} overrides" if softening.overrides else ""
    measured = (
        f", relative to scales measured at {len(description.scales)} gates" if description.scales else ""
    )
    return f"{softening.preset}{overrides}{measured}"


def _settings(description: Description) -> str:
    """The program's settings, but for those that say nothing."""
    given = {
        name: setting
        for name, setting in description.settings.items()
        if setting is not None and setting is not False
    }
    return ", ".join(f"{name} {setting}" for name, setting in given.items()) or "none"


def _tables(file: OnnxFile, description: Description) -> list[tuple[str, Table]]:
    """Title and content of every section below the summary."""
    gates = [(gate.kind, gate.rule, gate.temperature, str(gate.count)) for gate in description.gates]
    operators = [(name, str(count)) for name, count in file.operators.items()]
    return [
        ("Interface", _interface(file)),
        ("From photograph to image", _preprocessing(description)),
        ("Gates", _columns(("kind", "rule", "temperature", "nodes"), gates, numbers=2)),
        (
            f"Operators ({sum(file.operators.values())} nodes)",
            _columns(("type", "nodes"), operators, numbers=1),
        ),
        (_verified(description.verification), _verification(description.verification)),
        *_notes(description.verification),
    ]


def _portability(file: OnnxFile, runtimes: list[Portability]) -> list[tuple[str, Table]]:
    """Title and content of the sections on runtimes."""
    total = len(file.operators)
    has = [(one.runtime, f"{one.supported} of {total}", _exceptions(one)) for one in runtimes]
    sources = [(one.runtime, f"{one.version}, {one.date}; {one.source}") for one in runtimes]
    return [
        ("Operator types that runtimes have", _columns(("runtime", "has", "but"), has)),
        ("Where this is known from", _grid(*sources)),
    ]


def _exceptions(runtime: Portability) -> str:
    """What is missing or limited, and what happens then."""
    missing = ", ".join(
        f"{name} ({count} {'node' if count == 1 else 'nodes'})" for name, count in runtime.missing.items()
    )
    phrases = [
        f"no {missing}: {runtime.otherwise}" if missing else "",
        *(f"{name}: {limit}, or it {runtime.otherwise}" for name, limit in runtime.limited.items()),
        f"unknown: {', '.join(runtime.unknown)}" if runtime.unknown else "",
        runtime.note,
    ]
    return "; ".join(phrase for phrase in phrases if phrase) or "-"


def _interface(file: OnnxFile) -> Table:
    def row(direction: str, value: Value) -> tuple[str, ...]:
        return direction, value.name, value.dtype, f"[{', '.join(map(str, value.shape))}]"

    inputs = [row("input", value) for value in file.inputs]
    outputs = [row("output", value) for value in file.outputs]
    return _columns(("", "name", "type", "shape"), inputs + outputs)


def _preprocessing(description: Description) -> Table:
    how = description.preprocessing
    height, width = how.size
    if how.resize is None:
        resize = f"squeezed to {height} x {width}, {how.interpolation}"
    else:
        resize = f"shorter side to {how.resize}, {how.interpolation}, centre crop to {height} x {width}"
    low, high = how.input_range
    if description.input == "uint8":
        pixels = description.verification.pixels if description.verification else None
        off = "" if pixels is None else f", within {pixels:.2g} levels of 255 of Pillow's"
        resize += f" (by the artifact{off})"
    rows = [("size", resize), ("range", f"black {low:g}, white {high:g}")]
    if how.mean is not None and how.std is not None:
        rows.append(("mean", f"{', '.join(f'{value:g}' for value in how.mean)} (applied by the artifact)"))
        rows.append(("std", f"{', '.join(f'{value:g}' for value in how.std)} (applied by the artifact)"))
    return _grid(*rows)


def _verified(verification: Verification | None) -> str:
    if verification is None:
        return "Verification"
    versions = f"onnxruntime {verification.onnxruntime}, torch {verification.torch}"
    measure = f"relative errors, of attributions by the {verification.measure}"
    return f"Verification ({measure}; tolerance {verification.tolerance:.0e}; {versions})"


def _verification(verification: Verification | None) -> Table:
    """The measured errors, or that there are none."""
    if verification is None:
        return _grid(("none", "the file was saved without"))
    rows = []
    for one in verification.batches:
        to_module = (one.attribution_to_module, one.logits_to_module)
        to_eager = (one.attribution_to_eager, one.logits_to_eager)
        for reference, errors in (("torch.fx program", to_module), ("eager PyTorch", to_eager)):
            rows.append((str(one.batch), reference, *(f"{error:.1e}" for error in errors)))
        rows.append(
            (str(one.batch), "(allowed)", f"{verification.allowed(one):.0e}", f"{verification.of_values:.0e}")
        )
    return _columns(("batch", "compared with", "attribution", "logits"), rows, numbers=2)


def _notes(verification: Verification | None) -> list[tuple[str, Table]]:
    """What could not be verified."""
    notes = () if verification is None else verification.notes
    return [("Not verified", _grid(*(("note", note) for note in notes)))] if notes else []


def _columns(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]], numbers: int = 0) -> Table:
    """A table without lines, so that it can be copied; its last `numbers` columns are aligned right."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for position, head in enumerate(heads):
        right = position >= len(heads) - numbers
        table.add_column(head, justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _grid(*rows: tuple[str, str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
