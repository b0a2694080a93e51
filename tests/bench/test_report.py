from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from sptrace.bench import chart, report
from sptrace.bench.cold import Cold
from sptrace.bench.machine import machine
from sptrace.bench.timing import Row
from sptrace.errors import SptraceError

ROWS = (
    Row(1, "sptrace", 890.0, 689.0, 912.0, 1.0, 5.0, 500.0, 0.625, 0.25, 0.05, 120.0),
    Row(1, "eager", 2225.0, 1024.0, 10380.0, 222.5, None, None, None, 1.0, 0.5, 900.0, 1e-6),
    Row(1, "aotinductor", why="OpenVINO is not installed: pip install openvino"),
    Row(8, "sptrace", 70.0, 69.0, 90.0, 1.0, 40.0, 571.0, 0.7, 0.25, 0.3, 300.0),
)
REPORT = report.Report(
    "timm:toy",
    "soft_pullback",
    (20, 24),
    2,
    7,
    {1: 800.0, 8: 816.0},
    machine(),
    ROWS,
    (Cold("sptrace", 0.4, 110.0), Cold("eager", 3.5, 700.0)),
)


def printed() -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in report.tables(REPORT):
        console.print(table)
    return console.export_text()


def test_the_tables_fit_a_terminal() -> None:
    lines = printed().splitlines()
    assert any(
        "eager" in line and "2225.0" in line and "222.50" in line and "1.0e-06" in line for line in lines
    )
    assert any("aotinductor" in line and "-" in line for line in lines)
    assert sum("batch" in line for line in lines) == 2
    assert not any("…" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_notes() -> None:
    assert report.notes(REPORT)[0] == "aotinductor, batch 1: OpenVINO is not installed: pip install openvino"
    assert "5 GFLOP, 500 GFLOP/s: 62%" in report.notes(REPORT)[1]
    assert "2 threads" in report.heading(REPORT)


def test_json_holds_everything(tmp_path: Path) -> None:
    path = tmp_path / "speed.json"
    report.save(REPORT, path)
    data = json.loads(path.read_text())
    assert data["peak_gflops"] == {"1": 800.0, "8": 816.0}
    assert data["machine"]["cores"] >= 1
    assert data["rows"][1]["side"] == "eager"
    assert data["rows"][1]["ratio"] == 222.5
    assert data["cold"][0] == {"side": "sptrace", "seconds": 0.4, "peak_megabytes": 110.0}
    assert list(tmp_path.iterdir()) == [path]


def test_csv_holds_the_rows(tmp_path: Path) -> None:
    path = tmp_path / "speed.csv"
    report.save(REPORT, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == [
        "sptrace",
        "eager",
        "aotinductor",
        "sptrace",
        "sptrace, cold",
        "eager, cold",
    ]
    assert rows[1]["network"] == "timm:toy"
    assert float(rows[1]["median_ms"]) == 2225
    assert rows[2]["median_ms"] == ""
    assert "not installed" in rows[2]["why"]
    assert (rows[4]["batch"], rows[4]["first_seconds"]) == ("", "0.4")


def test_formats(tmp_path: Path) -> None:
    with pytest.raises(SptraceError, match=r"end its name in \.csv or \.json"):
        report.require_format(tmp_path / "speed.txt")


def test_the_chart_draws_times_to_scale() -> None:
    pixels = np.asarray(chart.draw(REPORT))
    assert pixels.shape[1] == chart.WIDTH
    own = (pixels == chart.OWN).all(2)
    other = (pixels == chart.OTHER).all(2)
    # The first of our bars, and the only one of a peer that was measured.
    first = np.flatnonzero(own.any(1))[0]
    ours, eager = own[first].sum(), other.sum(1).max()
    assert eager == pytest.approx(2.5 * ours, rel=0.02)
    # The scale of each batch size is its own: the longest bars are alike.
    assert own.sum(1).max() == eager
