"""What was measured, as a table on the terminal, as JSON and as CSV."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich import box
from rich.table import Table

from sptrace.artifact.files import replacing, require_writable
from sptrace.bench.cold import Cold
from sptrace.bench.job import OURS
from sptrace.bench.timing import Row
from sptrace.errors import SptraceError

EXTENSIONS = (".csv", ".json")


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    Arguments:
        processor: its name.
        cores: that this process may use.
        versions: of the libraries.
    """

    processor: str
    cores: int
    versions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """All that one run of `sptrace bench` measured.

    Arguments:
        network: as the user wrote it.
        program: name of the program.
        size: height and width of the pictures.
        threads: of every side.
        rounds: how often each side was measured.
        peak_gflops: by batch size, what a product of large float32 matrices reached between the measurements, in GFLOP
            per second.
        machine: where.
        rows: the sides.
        cold: cold starts; empty if they were not asked for.
    """

    network: str
    program: str
    size: tuple[int, int]
    threads: int
    rounds: int
    peak_gflops: dict[int, float]
    machine: Machine
    rows: tuple[Row, ...]
    cold: tuple[Cold, ...] = ()


def require_format(path: Path) -> None:
    """Fail before the work rather than after it.

    Raises:
        SptraceError: the extension is neither .csv nor .json, or the file cannot be written.
    """
    if path.suffix not in EXTENSIONS:
        raise SptraceError(f"cannot write the numbers to {path}: end its name in {' or '.join(EXTENSIONS)}")
    require_writable(path)


def save(report: Report, path: Path) -> None:
    """Write everything as JSON, or the rows as CSV, as the extension says.

    A row of the CSV begins with network, program, height, width, threads and rounds; those of cold starts have no
    batch size, and their side is called "sptrace, cold".

    Raises:
        SptraceError: see `require_format`.
    """
    require_format(path)
    with replacing(path) as temporary:
        if path.suffix == ".json":
            temporary.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
            return
        common = {
            "network": report.network,
            "program": report.program,
            "height": report.size[0],
            "width": report.size[1],
            "threads": report.threads,
            "rounds": report.rounds,
        }
        names = [*common, *(item.name for item in fields(Row))]
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows({**common, **asdict(row)} for row in report.rows)
            writer.writerows(
                {
                    **common,
                    "side": f"{start.side}, cold",
                    "first_seconds": start.seconds,
                    "peak_megabytes": start.peak_megabytes,
                }
                for start in report.cold
            )


def tables(report: Report) -> list[Table]:
    """The tables for the terminal: one for each batch size, and one of the cold starts if there are any."""
    found = []
    for batch in dict.fromkeys(row.batch for row in report.rows):
        table = _table(
            f"batch {batch}", "median ms", "min - max", "ratio", "ready s", "peak MB", "difference"
        )
        for row in report.rows:
            if row.batch == batch:
                table.add_row(*_cells(row))
        found.append(table)
    if report.cold:
        table = _table("cold start", "seconds", "peak MB")
        for start in report.cold:
            table.add_row(start.side, f"{start.seconds:.2f}", f"{start.peak_megabytes:.0f}")
        found.append(table)
    return found


def _table(first: str, *columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def heading(report: Report) -> str:
    """What was measured, in one line."""
    height, width = report.size
    return (
        f"{report.program} of {report.network}, {height} x {width} pixels, {in_words(report.threads, 'thread')}, "
        f"medians of {in_words(report.rounds, 'round')}"
    )


def in_words(count: int, what: str) -> str:
    """A number and what is counted."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def notes(report: Report) -> list[str]:
    """What the table has no room for, a line each: sides without numbers, and the share of the machine's peak."""
    lines = [f"{row.side}, batch {row.batch}: {row.why}" for row in report.rows if row.why]
    for row in report.rows:
        if row.side == OURS and row.gflop is not None and row.share_of_peak is not None:
            lines.append(
                f"batch {row.batch}: {row.gflop:.3g} GFLOP, {row.gflops:.3g} GFLOP/s: {row.share_of_peak:.0%} of the "
                f"{report.peak_gflops[row.batch]:.0f} that a product of large float32 matrices reached meanwhile"
            )
    return lines


def _cells(row: Row) -> list[str]:
    def text(number: float | None, form: str) -> str:
        return "-" if number is None else format(number, form)

    spread = "-" if row.min_ms is None else f"{row.min_ms:.1f} - {row.max_ms:.1f}"
    ready = None if row.load_seconds is None else row.load_seconds + (row.first_seconds or 0.0)
    return [
        row.side,
        text(row.median_ms, ".1f"),
        spread,
        text(row.ratio, ".2f"),
        text(ready, ".2f"),
        text(row.peak_megabytes, ".0f"),
        text(row.difference, ".1e"),
    ]
