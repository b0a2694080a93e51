from __future__ import annotations

import csv
import os
import re
from importlib import metadata
from pathlib import Path

import pytest

from sptrace.cli import coverage, main
from sptrace.cli.coverage_table import markdown
from sptrace.models import untrained

ROWS = [
    ("timm", "cait", "yes", "2.5e-06", "3.0e-06", "2.0e-06", "", "7.5", "900", "12.3", ""),
    ("timm", "coat", "yes", "9.0e-07", "4.0e-03", "5.0e-03", "6.0e-03", "12.0", "1000", "4.5", ""),
    (
        "timm",
        "vovnet",
        "no",
        "",
        "",
        "",
        "",
        "3.0",
        "",
        "",
        "no rule\nfor a | b (/root/lib/site-packages/timm/vovnet.py:3)",
    ),
    ("torchvision", "squeezenet1_1", "yes", "1.0e-06", "2.0e-06", "1.0e-06", "", "3.0", "100", "531.0", ""),
]


def test_the_page() -> None:
    rows = [dict(zip(coverage.COLUMNS, row, strict=True)) for row in ROWS]
    page = markdown(rows, {"timm": 4, "torchvision": 1}, "soft_pullback", 2)
    lines = page.splitlines()
    assert "| timm | 4 | 3 | 2 (66.7 %) | 2.5e-06 | coat, 4.0e-03 (PyTorch 5.0e-03) | coat, 12.0 s |" in lines
    far = "squeezenet1_1, 2.0e-06 (PyTorch 1.0e-06)"
    assert f"| torchvision | 1 | 1 | 1 (100.0 %) | 1.0e-06 | {far} | squeezenet1_1, 3.0 s |" in lines
    assert "| vovnet | no rule for a \\| b (timm/vovnet.py:3) |" in lines
    assert "| vovnet | no | - | - | - | - | 3.0 | - | - |" in lines
    assert "| squeezenet1_1 | yes | 1.0e-06 | 2.0e-06 | 1.0e-06 | - | 3.0 | 100 | 531.0 |" in lines
    assert lines.index("## timm") < lines.index(
        "| cait | yes | 2.5e-06 | 3.0e-06 | 2.0e-06 | - | 7.5 | 900 | 12.3 |"
    )
    assert lines.index("| cait | yes | 2.5e-06 | 3.0e-06 | 2.0e-06 | - | 7.5 | 900 | 12.3 |") < lines.index(
        "## torchvision"
    )
    assert page.count("What does not compile") == 1
    assert re.search(r"^20\d\d-\d\d-\d\d; sptrace ", page, re.MULTILINE)
    assert f"torch {metadata.version('torch')}" in page
    assert "sptrace coverage --source timm -o coverage.csv --markdown coverage.md" in lines


def test_a_source_of_which_nothing_compiles() -> None:
    page = markdown([dict(zip(coverage.COLUMNS, ROWS[2], strict=True))], {"timm": 9}, "soft_pullback", 2)
    assert "| timm | 9 | 1 | 0 (0.0 %) | - | - | - |" in page.splitlines()


def test_a_finished_sweep_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of other sources in the file are on the page too."""
    table, page = tmp_path / "coverage.csv", tmp_path / "coverage.md"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([coverage.COLUMNS, *reversed(ROWS)])
    monkeypatch.setattr(coverage, "_compile_one", lambda *arguments: pytest.fail("nothing is left to do"))
    with pytest.raises(SystemExit) as exit_:
        main(["coverage", "-o", str(table), "--match", "squeezenet1_1", "--markdown", str(page)])
    assert not exit_.value.code
    rows = [dict(zip(coverage.COLUMNS, row, strict=True)) for row in ROWS]
    known = {source: len(untrained.names(source)) for source in ("timm", "torchvision")}
    assert page.read_text() == markdown(rows, known, "soft_pullback", os.cpu_count() or 1)
