from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from sptrace.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["bench", *(str(argument) for argument in arguments)])
        output, errors = capsys.readouterr()
        return int(exit_.value.code or 0), output, errors

    return run


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    """A small network as a .pt2 file."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    ).eval()
    path = tmp_path / "small.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(network, (torch.zeros(2, 3, 20, 24),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path


@pytest.mark.slow
def test_from_a_network_to_numbers_and_a_chart(run: Run, exported: Path, tmp_path: Path) -> None:
    table, picture = tmp_path / "speed.csv", tmp_path / "speed.png"
    options = ("--batch", "1,3", "--against", "eager", "--threads", 1, "--rounds", 2, "--cold")
    status, output, _ = run(exported, *options, "-o", table, "--chart", picture)
    assert status == 0
    assert "soft_pullback of" in output
    assert "1 thread," in output
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch"], row["side"]) for row in rows] == [
        ("1", "sptrace"),
        ("1", "eager"),
        ("3", "sptrace"),
        ("3", "eager"),
        ("", "sptrace, cold"),
        ("", "eager, cold"),
    ]
    assert not any(row["why"] for row in rows)
    assert float(rows[3]["difference"]) < 1e-5
    assert Image.open(picture).width == 1200


@pytest.mark.slow
def test_random_weights(run: Run, tmp_path: Path) -> None:
    table = tmp_path / "speed.csv"
    options = ("--random", "--size", 64, "--against", "", "--threads", 1, "--rounds", 1)
    status, output, errors = run("torchvision:squeezenet1_1", *options, "-o", table)
    assert (status, errors) == (0, "")
    assert "64 x 64 pixels" in output
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["gflop"]) > 0
    assert float(row["share_of_peak"]) > 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("torchvision:resnet18", "--batch", "1,x"), "--batch 1,x: write different numbers above 0"),
        (("torchvision:resnet18", "--batch", "0"), "--batch 0: write"),
        (("torchvision:resnet18", "--batch", "2,2"), "--batch 2,2: write"),
        (("torchvision:resnet18", "--against", "eager,tvm"), "--against tvm: there is no such peer"),
        (("torchvision:resnet18", "--program", "soft_pushback"), "soft_pullback"),
        (("torchvision:resnet18", "-o", "speed.txt"), "end its name in .csv or .json"),
        (("torchvision:resnet18", "-o", "absent/speed.csv"), "does not exist"),
        (("torchvision:resnet18", "--chart", "speed.xyz"), "end its name in .png"),
        (("torchvision:resnet18", "--random", "--weights", "w.pth"), "contradict each other"),
        (("torchvision:resnet18", "--random", "--size", "0"), "at least one pixel"),
        (("efficientnet_lite0", "--random"), "--random builds torchvision:NAME or timm:NAME"),
        (("torchvision:resnet9", "--random"), "cannot build torchvision:resnet9"),
        (("torchvision:resnet9",), "unknown model torchvision:resnet9"),
    ],
)
def test_mistakes_are_one_line(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output, errors = run(*arguments)
    assert (status, output) == (2, "")
    line = errors.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert complaint in line
    assert list(tmp_path.iterdir()) == []
