"""`sptrace coverage`: which architectures compile, and how exactly."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sptrace import installing
from sptrace.artifact.files import replacing, require_writable
from sptrace.cli.coverage_table import COLUMNS, markdown
from sptrace.errors import SptraceError

Work = Callable[..., dict[str, str]]

PRELOADED = ("sptrace.compiler.compile", "sptrace.models.untrained", "torch.export._trace")
"""What every compilation imports: loaded once, in the process from which those of the networks are forked."""


def coverage(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .csv file; a sweep goes on where it stopped.")
    ],
    source: Annotated[str, typer.Option(help="torchvision, timm, transformers or smp.")] = "torchvision",
    match: Annotated[str, typer.Option(help="Only networks whose name contains this.")] = "",
    program: Annotated[str, typer.Option(help="The program to compile.")] = "soft_pullback",
    page: Annotated[
        Path | None, typer.Option("--markdown", help="Also write all rows of the .csv file as a page.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="How many networks at a time.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a network may take.")] = 600,
) -> None:
    """Compile every architecture of a source with random weights, and table what came of it."""
    if output.suffix != ".csv":
        raise SptraceError(f"cannot write the table to {output}: end its name in .csv")
    for path in (output, page):
        if path is not None:
            require_writable(path)
    try:
        from sptrace.models import untrained
    except ModuleNotFoundError as error:
        raise SptraceError(f"compiling needs {error.name}: {installing.command('compile')}") from error
    rows = _read(output)
    done = {(row["source"], row["network"]) for row in rows}
    names = [name for name in untrained.names(source) if match in name]
    waiting = [name for name in names if (source, name) not in done]
    multiprocessing.get_context("forkserver").set_forkserver_preload([*PRELOADED, source])
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress, ThreadPoolExecutor(jobs) as pool:
        task = progress.add_task(source, total=len(names), completed=len(names) - len(waiting))
        threads = max(1, (os.cpu_count() or 1) // jobs)
        running = {
            pool.submit(_compile_one, source, name, program, threads, timeout): name for name in waiting
        }
        for finished in as_completed(running):
            row = finished.result()
            rows.append(row)
            _write(output, rows)
            verdict = f"error {row['error']}" if row["compiled"] == "yes" else row["why"]
            progress.console.print(
                f"{row['network']}: {row['seconds']} s, {verdict}", markup=False, highlight=False
            )
            progress.advance(task)
    if page is not None:
        known = {row["source"]: len(untrained.names(row["source"])) for row in rows}
        with replacing(page) as temporary:
            temporary.write_text(
                markdown(_sorted(rows), known, program, os.cpu_count() or 1), encoding="utf-8"
            )
    swept = [row for row in rows if row["source"] == source and row["network"] in names]
    compiled = sum(row["compiled"] == "yes" for row in swept)
    typer.echo(f"{compiled} of {len(swept)} compiled and verified; saved {output}")


def _compile_one(source: str, name: str, program: str, threads: int, timeout: float) -> dict[str, str]:
    """One row of the table."""
    row = dict.fromkeys(COLUMNS, "") | {"source": source, "network": name}
    start = time.perf_counter()
    answer = in_a_process(_measure, (source, name, program, threads), timeout)
    measured = {"seconds": f"{time.perf_counter() - start:.1f}"} | answer
    return row | {"compiled": "no" if measured.get("why") else "yes"} | measured


def in_a_process(work: Work, arguments: tuple[object, ...], timeout: float) -> dict[str, str]:
    """What `work` answers; if it raises, dies or takes too long, {"why": the reason in one line}.

    Each network is compiled by a process of its own: none can take another's memory, or the sweep, with it.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, work, arguments), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            return {"why": f"took more than {timeout:g} s"}
        answer: dict[str, str] = receiver.recv()
        return answer
    except EOFError:
        process.join()
        hint = ": not enough memory?" if process.exitcode == -signal.SIGKILL else ""
        return {"why": f"the process ended with status {process.exitcode}{hint}"}
    finally:
        process.kill()
        process.join()


def _answer(sender: Connection, work: Work, arguments: tuple[object, ...]) -> None:
    """In the process of one network: quiet, for the sweep's progress is on the screen."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        answer = work(*arguments)
    except SptraceError as error:
        answer = {"why": str(error)}
    except Exception as error:  # the sweep goes on, whatever a network's own code raises
        lines = str(error).strip().splitlines() or ["no message"]
        answer = {"why": f"{type(error).__name__}: {lines[0]}"}
    sender.send(answer)


def _measure(source: str, name: str, program: str, threads: int) -> dict[str, str]:
    """Compile a network, which verifies it, and hold its gradient to float64 autograd.

    The time is that of the first, without the network's own construction.
    """
    import torch

    from sptrace.artifact.description import Preprocessing
    from sptrace.artifact.softening import Softening
    from sptrace.compiler.autograd import distances
    from sptrace.compiler.compile import compile_network, example_image
    from sptrace.compiler.emission import saving
    from sptrace.compiler.network import Network
    from sptrace.models.untrained import build

    torch.set_num_threads(threads)
    module, size = build(source, name)
    preprocessing = Preprocessing(size=(size, size), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    example = example_image(preprocessing)
    network = Network(module, name, preprocessing, labels=None, weights="random")
    start = time.perf_counter()
    compiled = compile_network(network, example, program=program, softening=Softening())
    seconds = time.perf_counter() - start
    verification = compiled.description.verification
    assert verification is not None
    error = max(
        max(batch.attribution_to_module, batch.attribution_to_eager) for batch in verification.batches
    )
    answer = {
        "error": f"{error:.1e}",
        "seconds": f"{seconds:.1f}",
        "nodes": str(len(compiled.module.graph.nodes)),
        "megabytes": f"{saving.weights_size(compiled.model) / 1e6:.1f}",
    }
    del compiled  # there may not be memory for two
    far = distances(network, example)
    answer |= {
        "gradient": f"{far.program:.1e}",
        "autograd": f"{far.autograd:.1e}",
        "doubt": f"{far.doubt:.1e}" if far.doubt else "",
    }
    if not far.are_explained:
        answer["why"] = (
            f"the gradient is {far.program:.1e} from float64 autograd, more than gates in doubt explain"
        )
    return answer


def _read(path: Path) -> list[dict[str, str]]:
    """The rows of an earlier sweep."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise SptraceError(f"{path} is no table of `sptrace coverage`: give another name")
        return list(reader)


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(_sorted(rows))


def _sorted(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return sorted(rows, key=lambda row: (row["source"], row["network"]))
