"""`sptrace bench`: how fast an artifact explains, beside other ways to compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sptrace import installing, models
from sptrace.artifact.files import require_writable
from sptrace.artifact.programs import PROGRAMS, program_kind
from sptrace.bench import chart, cold, report, timing
from sptrace.bench.job import OURS, PEERS
from sptrace.bench.machine import cores, machine
from sptrace.cli.compile import MODEL_HELP
from sptrace.errors import SptraceError
from sptrace.runtime import picture

if TYPE_CHECKING:
    from sptrace.compiler.network import Network


def bench(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    program: Annotated[str, typer.Option(help=f"What to compute: {', '.join(PROGRAMS)}.")] = "soft_pullback",
    batch: Annotated[str, typer.Option(metavar="N,N", help="Numbers of pictures at a time.")] = "1",
    against: Annotated[
        str, typer.Option(metavar="PEER,PEER", help=f"What to compare with, of {', '.join(PEERS)}.")
    ] = ",".join(PEERS),
    threads: Annotated[
        int | None, typer.Option(min=1, help="Of every side.", show_default="as many as cores")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each side is measured.")] = 20,
    size: Annotated[
        int | None,
        typer.Option(help="Height and width of the input in pixels.", show_default="the network's own"),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="State dict, .safetensors or .pth.", show_default="the library's pretrained weights"
        ),
    ] = None,
    random: Annotated[
        bool,
        typer.Option("--random", help="Random weights, for which nothing is downloaded; speed is the same."),
    ] = False,
    cold_start: Annotated[
        bool,
        typer.Option("--cold", help="Also measure how long fresh processes take to their first explanation."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the numbers: FILE.csv or FILE.json.")
    ] = None,
    picture_file: Annotated[
        Path | None, typer.Option("--chart", metavar="FILE.png", help="Draw the times as bars.")
    ] = None,
) -> None:
    """Measure how fast a network's explanation is, beside other ways to compute the same."""
    batches = _batches(batch)
    peers = _peers(against)
    program_kind(program)
    if random and weights is not None:
        raise SptraceError("--random and --weights contradict each other: leave one of them out")
    if output is not None:
        report.require_format(output)
    if picture_file is not None:
        picture.require_format(picture_file)
        require_writable(picture_file)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with (
        TemporaryDirectory(prefix="sptrace-bench-") as folder,
        Progress(
            *columns, console=console, transient=True, refresh_per_second=2, disable=not console.is_terminal
        ) as progress,
    ):
        task = progress.add_task("importing torch", total=None)
        network = _network(model, weights, size, random, progress, task)
        measured = _measure(
            network,
            program,
            Path(folder),
            batches,
            peers,
            threads or cores(),
            rounds,
            cold_start,
            progress,
            task,
        )
    _show(measured)
    if output is not None:
        report.save(measured, output)
        typer.echo(f"saved {output}")
    if picture_file is not None:
        picture.save(chart.draw(measured), picture_file)
        typer.echo(f"saved {picture_file}")


def _network(
    model: str, weights: Path | None, size: int | None, random: bool, progress: Progress, task: TaskID
) -> Network:
    if not random:
        return models.resolve(model, weights=weights, size=size)
    if size is not None and size < 1:
        raise SptraceError(f"--size {size}: a picture has at least one pixel")
    prepare = _prepare_module()
    progress.update(task, description="building the network")
    network: Network = prepare.random_network(model, size)
    return network


def _prepare_module() -> ModuleType:
    """`sptrace.bench.prepare`, which imports torch."""
    try:
        from sptrace.bench import prepare
    except ModuleNotFoundError as error:
        raise SptraceError(f"compiling needs {error.name}: {installing.command('compile')}") from error
    return prepare


def _measure(
    network: Network,
    program: str,
    folder: Path,
    batches: Sequence[int],
    peers: Sequence[str],
    threads: int,
    rounds: int,
    cold_start: bool,
    progress: Progress,
    task: TaskID,
) -> report.Report:
    """Compile, measure every batch size and then cold starts."""

    def say(words: str) -> None:
        progress.update(task, description=words)

    needed = [*peers, *(["eager"] if cold_start and "eager" not in peers else [])]
    prepared = _prepare_module().prepare(network, program, folder, batches, needed, say)
    progress.update(task, total=len(batches) + 0.001)
    rows: list[timing.Row] = []
    peaks = {}
    for number, batch in enumerate(batches):

        def done(words: str, share: float, before: int = number) -> None:
            progress.update(task, description=words, completed=before + share)

        found, peaks[batch] = timing.measure(
            folder,
            batch,
            peers,
            threads=threads,
            rounds=rounds,
            gflop=prepared.gflop[batch],
            by_norm=prepared.by_norm,
            tolerance=prepared.tolerance,
            unavailable=prepared.unavailable,
            progress=done,
        )
        rows += found
    sides = [OURS] if "eager" in prepared.unavailable else cold.SIDES
    starts = cold.measure(folder, threads, sides=sides, progress=say) if cold_start else []
    return report.Report(
        network.name,
        program,
        network.preprocessing.size,
        threads,
        rounds,
        peaks,
        machine(),
        tuple(rows),
        tuple(starts),
    )


def _show(measured: report.Report) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(report.heading(measured), soft_wrap=True)
    for table in report.tables(measured):
        console.print(table)
    for line in report.notes(measured):
        console.print(line, soft_wrap=True)


def _batches(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(set(parts)) < len(parts):
        raise SptraceError(f"--batch {text}: write different numbers above 0, for example 1,8")
    return [int(part) for part in parts]


def _peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PEERS:
            raise SptraceError(f"--against {name}: there is no such peer; use some of {', '.join(PEERS)}")
    return list(dict.fromkeys(names))
