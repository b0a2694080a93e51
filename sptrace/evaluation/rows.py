"""The scores on disk: one line per picture, method and metric, appended as they come."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

COLUMNS = ("picture", "method", "metric", "score")


class Row(NamedTuple):
    """One score."""

    picture: str
    method: str
    metric: str
    score: float


def read(path: Path) -> list[Row]:
    """The rows that are there; a last line that was cut off while it was written is removed from the file."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    lines = csv.DictReader(whole.splitlines())
    return [Row(line["picture"], line["method"], line["metric"], float(line["score"])) for line in lines]


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to the file, and a head if it is new."""
    new = not path.is_file() or not path.stat().st_size
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        writer.writerows((*row[:3], repr(row.score)) for row in rows)
