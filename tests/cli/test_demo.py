"""The whole path, as a user runs it: the real command, the real network, the real onnxruntime."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WITHOUT_TORCH = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnx_ir", "torchvision", "timm", "skimage", "scipy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from sptrace.cli import main
main(sys.argv[1:])
"""


def sptrace(
    *arguments: object, python: Sequence[str] = ("-m", "sptrace.cli")
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *python, *(str(argument) for argument in arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo")
    return folder, sptrace("demo", "-o", folder).stdout


@pytest.mark.slow
def test_the_demo_names_what_it_sees_and_what_it_wrote(demo: tuple[Path, str]) -> None:
    folder, output = demo
    lines = output.splitlines()
    (espresso,) = (line for line in lines if "espresso" in line)
    assert float(espresso.split()[2].rstrip("%")) > 90
    assert any("missile" in line for line in lines)
    for name in ("efficientnet_lite0.onnx", "coffee-explained.png", "rocket-explained.png"):
        assert str(folder / name) in output
        assert (folder / name).stat().st_size > 0


def in_the_cup(artifact: Path, photograph: Path, tmp_path: Path) -> float:
    """How many times as much attribution lies on the coffee as anywhere."""
    numbers = tmp_path / "coffee.npz"
    sptrace("explain", artifact, photograph, "-o", tmp_path / "why.png", "--save-npz", numbers)
    with np.load(numbers) as saved:
        energy = np.square(np.abs(saved["attribution"][0]).sum(0))
    # The coffee fills this box of the 224 x 224 crop, an eighth of the picture.
    return float(energy[40:110, 65:160].mean() / energy.mean())


@pytest.mark.slow
def test_the_attribution_of_coffee_lies_in_the_cup(demo: tuple[Path, str], tmp_path: Path) -> None:
    """With the paper's temperatures above all in the liquid; with the default's also on the rim and the spoon."""
    folder, _ = demo
    paper = tmp_path / "paper.onnx"
    sptrace("compile", "efficientnet_lite0", "-o", paper, "--preset", "paper")
    assert in_the_cup(paper, folder / "coffee.jpg", tmp_path) > 2.5
    assert in_the_cup(folder / "efficientnet_lite0.onnx", folder / "coffee.jpg", tmp_path) > 1.5


@pytest.mark.slow
def test_without_torch_the_numbers_are_the_same(demo: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = demo
    artifact, photograph = folder / "efficientnet_lite0.onnx", folder / "coffee.jpg"
    answers = {}
    for name, python in {"with": ("-m", "sptrace.cli"), "without": ("-c", WITHOUT_TORCH)}.items():
        numbers, picture = tmp_path / f"{name}.npz", tmp_path / f"{name}.png"
        sptrace(
            "explain",
            artifact,
            photograph,
            "-o",
            picture,
            "--save-npz",
            numbers,
            "--threads",
            1,
            python=python,
        )
        with np.load(numbers) as saved:
            answers[name] = {key: saved[key] for key in saved.files}
        assert Image.open(picture).width > 1000
    for key, expected in answers["with"].items():
        np.testing.assert_array_equal(answers["without"][key], expected)
