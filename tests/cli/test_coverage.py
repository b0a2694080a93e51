from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from sptrace.cli import coverage, main
from sptrace.errors import SptraceError


def rows(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["network"]: row for row in csv.DictReader(file)}


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["coverage", *(str(argument) for argument in arguments)])
    return int(exit_.value.code or 0)


@pytest.mark.slow
def test_a_sweep_and_its_continuation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "coverage.csv"
    assert run("--match", "squeezenet1_1", "-o", table) == 0
    first = rows(table)["squeezenet1_1"]
    assert first["compiled"] == "yes"
    assert 0 < float(first["error"]) < 1e-5
    assert 0 < float(first["gradient"]) < 1e-4
    assert 0 < float(first["autograd"]) < 1e-4
    assert float(first["seconds"]) > 0
    assert int(first["nodes"]) > 100
    assert 4 < float(first["megabytes"]) < 6
    # The second sweep has only the rest to do.
    compiled = []

    def compile_one(source: str, name: str, *options: object) -> dict[str, str]:
        compiled.append(name)
        return dict.fromkeys(coverage.COLUMNS, "") | {
            "source": source,
            "network": name,
            "compiled": "no",
            "why": "x",
        }

    monkeypatch.setattr(coverage, "_compile_one", compile_one)
    assert run("--match", "squeezenet", "-o", table) == 0
    assert compiled == ["squeezenet1_0"]
    assert rows(table)["squeezenet1_1"] == first
    assert rows(table)["squeezenet1_0"]["why"] == "x"


def raises() -> dict[str, str]:
    raise RuntimeError("no such luck\nand more")


def complains() -> dict[str, str]:
    raise SptraceError("no rule for this")


def dies() -> dict[str, str]:
    os._exit(3)


def is_killed() -> dict[str, str]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hangs() -> dict[str, str]:
    time.sleep(60)
    return {}


@pytest.mark.parametrize(
    ("work", "timeout", "why"),
    [
        (raises, 60, "RuntimeError: no such luck"),
        (complains, 60, "no rule for this"),
        (dies, 60, "the process ended with status 3"),
        (is_killed, 60, "the process ended with status -9: not enough memory?"),
        (hangs, 0.5, "took more than 0.5 s"),
    ],
)
def test_a_network_that_fails_or_hangs_is_a_row(work: coverage.Work, timeout: float, why: str) -> None:
    assert coverage.in_a_process(work, (), timeout) == {"why": why}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("-o", "table.txt"), "end its name in .csv"),
        (("-o", "absent/table.csv"), "does not exist"),
        (("-o", "table.csv", "--source", "keras"), "there is no source 'keras'"),
        (("-o", "other.csv"), "is no table of `sptrace coverage`"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert complaint in errors
    assert len(errors.strip().splitlines()) == 1
