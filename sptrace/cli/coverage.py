"""`sptrace coverage`: which architectures compile, and how exactly."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sptrace.errors import SptraceError
from sptrace.files import replacing, require_writable

COLUMNS = ("source", "network", "compiled", "error", "seconds", "nodes", "megabytes", "why")

# Each network is compiled by a process of its own: none can take another's memory, or the sweep, with it.
ONE = """
import json, sys, time
import torch
from sptrace.compiler import compile, example_image
from sptrace.artifact import Preprocessing
from sptrace.errors import SptraceError
from sptrace.models.untrained import build
source, name, program, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
start = time.perf_counter()
try:
    module, size = build(source, name)
    start = time.perf_counter()
    example = example_image(Preprocessing(size=(size, size)))
    compiled = compile(module, example, program=program, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batches = compiled.description.verification.batches
    error = max(max(batch.attribution_to_module, batch.attribution_to_eager) for batch in batches)
    row = {"compiled": "yes", "error": f"{error:.1e}", "nodes": len(compiled.module.graph.nodes),
           "megabytes": round(len(compiled.onnx_model) / 1e6, 1), "why": ""}
except SptraceError as error:
    row = {"compiled": "no", "why": str(error)}
print(json.dumps({**row, "seconds": round(time.perf_counter() - start, 1)}))
"""


def coverage(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The .csv file; a sweep goes on where it stopped.")
    ],
    source: Annotated[str, typer.Option(help="torchvision, timm or transformers.")] = "torchvision",
    match: Annotated[str, typer.Option(help="Only networks whose name contains this.")] = "",
    program: Annotated[str, typer.Option(help="The program to compile.")] = "soft_pullback",
    jobs: Annotated[int, typer.Option(min=1, help="How many networks at a time.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds a network may take.")] = 600,
) -> None:
    """Compile every architecture of a source with random weights, and table what came of it."""
    if output.suffix != ".csv":
        raise SptraceError(f"cannot write the table to {output}: end its name in .csv")
    require_writable(output)
    try:
        from sptrace.models import untrained
    except ModuleNotFoundError as error:
        raise SptraceError(f"compiling needs {error.name}: pip install 'sptrace[compile]'") from error
    rows = _read(output)
    done = {(row["source"], row["network"]) for row in rows}
    names = [name for name in untrained.names(source) if match in name]
    waiting = [name for name in names if (source, name) not in done]
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
    swept = [row for row in rows if row["source"] == source and row["network"] in names]
    compiled = sum(row["compiled"] == "yes" for row in swept)
    typer.echo(f"{compiled} of {len(swept)} compiled and verified; saved {output}")


def _compile_one(source: str, name: str, program: str, threads: int, timeout: float) -> dict[str, str]:
    """One row of the table."""
    start = time.perf_counter()
    row = {column: "" for column in COLUMNS} | {"source": source, "network": name, "compiled": "no"}
    words = [sys.executable, "-W", "ignore", "-c", ONE, source, name, program, str(threads)]
    try:
        run = subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)
        lines = run.stdout.strip().splitlines()
        if run.returncode == 0 and lines:
            return row | {key: str(item) for key, item in json.loads(lines[-1]).items()}
        complaints = run.stderr.strip().splitlines() or [f"the process ended with status {run.returncode}"]
        row["why"] = complaints[-1]
    except subprocess.TimeoutExpired:
        row["why"] = f"took more than {timeout:g} s"
    return row | {"seconds": f"{time.perf_counter() - start:.1f}"}


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
        writer.writerows(sorted(rows, key=lambda row: (row["source"], row["network"])))
