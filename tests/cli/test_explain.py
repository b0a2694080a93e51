from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sptrace.cli import explain, main
from sptrace.errors import SptraceError
from sptrace.runtime import photo, picture


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(3).integers(256, size=(50, 80, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        return int(exit_.value.code or 0), output, errors

    return run


def test_the_predicted_class_is_explained(toy: Any, photograph: Path, tmp_path: Path, run: Any) -> None:
    status, output, errors = run("explain", toy.path, photograph, "-o", tmp_path / "picture.png")
    assert (status, errors) == (0, "")
    image = photo.prepare(photo.read(photograph), toy.description.preprocessing)
    logits = toy.logits(image)[0]
    index = int(logits.argmax())
    line = next(line for line in output.splitlines() if line.split()[0] == str(index))
    probability = np.exp(logits)[index] / np.exp(logits).sum()
    assert toy.description.labels[index] in line
    assert f"{probability:.2%}" in line
    assert f"{logits[index]:.3f}" in line
    assert str(tmp_path / "picture.png") in output
    with Image.open(tmp_path / "picture.png") as drawn:
        assert drawn.width == 2 * picture.MARGIN + 3 * 448 + 2 * picture.GAP


def test_the_picture_shows_the_photograph_and_the_attribution(
    toy: Any, photograph: Path, tmp_path: Path, run: Any
) -> None:
    run("explain", toy.path, photograph, "-o", tmp_path / "picture.png", "--target", "espresso")
    preprocessing = toy.description.preprocessing
    original = photo.read(photograph)
    image = photo.prepare(original, preprocessing)
    logits = toy.logits(image)[0]
    row = picture.Row(
        "espresso",
        float(np.exp(logits)[6] / np.exp(logits).sum()),
        toy.attribution(image, np.array([6]))[0].astype(np.float32),
    )
    seen = photo.crop(original, preprocessing)
    expected = picture.draw(seen, [row], program="toy_pullback", network="toy:mean")
    with Image.open(tmp_path / "picture.png") as drawn:
        difference = np.abs(np.asarray(drawn).astype(int) - np.asarray(expected))
    assert difference.max() <= 1


@pytest.mark.parametrize("target", ["6", "espresso", "Espresso"])
def test_a_class_is_chosen(toy: Any, photograph: Path, tmp_path: Path, run: Any, target: str) -> None:
    numbers = tmp_path / "numbers.npz"
    outputs = ("-o", tmp_path / "picture.png", "--save-npz", numbers)
    status, output, _ = run("explain", toy.path, photograph, *outputs, "--target", target)
    assert status == 0
    assert "espresso" in output
    image = photo.prepare(photo.read(photograph), toy.description.preprocessing)
    with np.load(numbers) as saved:
        assert sorted(saved) == ["attribution", "logits", "target"]
        assert saved["target"].tolist() == [6]
        expected = toy.attribution(image, np.array([6]))
        np.testing.assert_allclose(saved["attribution"], expected, rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(saved["logits"], toy.logits(image), rtol=1e-4, atol=1e-7)


def test_the_most_probable_classes_are_explained(
    toy: Any, photograph: Path, tmp_path: Path, run: Any
) -> None:
    numbers = tmp_path / "numbers.npz"
    outputs = ("-o", tmp_path / "picture.png", "--save-npz", numbers)
    assert run("explain", toy.path, photograph, *outputs, "--top", 3)[0] == 0
    image = photo.prepare(photo.read(photograph), toy.description.preprocessing)
    expected = np.argsort(-toy.logits(image)[0])[:3]
    with np.load(numbers) as saved:
        assert saved["target"].tolist() == expected.tolist()
        attribution = toy.attribution(image.repeat(3, axis=0), expected)
        np.testing.assert_allclose(saved["attribution"], attribution, rtol=1e-4, atol=1e-9)
        assert saved["logits"].shape == (3, 7)
    with Image.open(tmp_path / "picture.png") as drawn:
        assert drawn.height > 3 * 336


def test_top_beyond_the_number_of_classes_means_all(
    toy: Any, photograph: Path, tmp_path: Path, run: Any
) -> None:
    numbers = tmp_path / "numbers.npz"
    outputs = ("-o", tmp_path / "picture.png", "--save-npz", numbers)
    assert run("explain", toy.path, photograph, *outputs, "--top", 99)[0] == 0
    with np.load(numbers) as saved:
        assert sorted(saved["target"]) == list(range(7))


def test_many_classes_are_explained_a_few_at_a_time(
    toy: Any, photograph: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer does not depend on how many."""
    answers = []
    for number in (2, 99):
        monkeypatch.setattr(explain, "AT_A_TIME", number)
        numbers = tmp_path / f"{number}.npz"
        outputs = ("-o", tmp_path / "picture.png", "--save-npz", numbers)
        assert run("explain", toy.path, photograph, *outputs, "--top", 6)[0] == 0
        with np.load(numbers) as saved:
            answers.append(dict(saved))
    assert len(answers[0]["target"]) == 6
    for name, array in answers[0].items():
        np.testing.assert_array_equal(array, answers[1][name])


def test_more_classes_than_the_format_holds(
    toy: Any, photograph: Path, tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(picture.HIGHEST, ".webp", 1400)
    status, _, errors = run("explain", toy.path, photograph, "-o", tmp_path / "out.webp", "--top", 7)
    assert status == 2
    assert errors == "error: --top 7 makes a picture higher than a .webp file holds: give at most 3\n"
    assert not (tmp_path / "out.webp").exists()
    assert run("explain", toy.path, photograph, "-o", tmp_path / "out.webp", "--top", 3)[0] == 0


ERRORS = {
    "missing artifact": (["nowhere.onnx", "photo.png", "-o", "out.png"], "there is no file nowhere.onnx"),
    "artifact is no ONNX": (["photo.png", "photo.png", "-o", "out.png"], "cannot load photo.png"),
    "brackets": (["[red]x[N, 3].onnx", "photo.png", "-o", "out.png"], "there is no file [red]x[N, 3].onnx"),
    "no metadata": (["other.onnx", "photo.png", "-o", "out.png"], "other.onnx was not written by sptrace"),
    "missing photograph": (["toy.onnx", "nowhere.png", "-o", "out.png"], "there is no file nowhere.png"),
    "no picture": (["toy.onnx", "toy.onnx", "-o", "out.png"], "toy.onnx is not a picture"),
    "unknown class": (["toy.onnx", "photo.png", "-o", "out.png", "--target", "expreso"], "6 (espresso)"),
    "ambiguous class": (["toy.onnx", "photo.png", "-o", "out.png", "--target", "crane"], "several classes"),
    "index": (["toy.onnx", "photo.png", "-o", "out.png", "--target", "7"], "there is no class 7"),
    "provider": (
        ["toy.onnx", "photo.png", "-o", "out.png", "--provider", "NoProvider"],
        "available are",
    ),
    "extension": (["toy.onnx", "photo.png", "-o", "out.txt"], "end its name in .png"),
    "missing folder": (["toy.onnx", "photo.png", "-o", "no/out.png"], "does not exist"),
    "folder": (["toy.onnx", "photo.png", "-o", "folder.png"], "is a folder"),
    "photograph": (["toy.onnx", "photo.png", "-o", "./photo.png"], "is the photograph itself"),
    "target and top": (
        ["toy.onnx", "photo.png", "-o", "out.png", "--target", "6", "--top", "2"],
        "leave out --target",
    ),
    "npz name": (["toy.onnx", "photo.png", "-o", "out.png", "--save-npz", "numbers"], "end its name in .npz"),
    "npz folder": (
        ["toy.onnx", "photo.png", "-o", "out.png", "--save-npz", "no/numbers.npz"],
        "does not exist",
    ),
    "no output": (["toy.onnx", "photo.png"], "--output"),
    "no rows": (["toy.onnx", "photo.png", "-o", "out.png", "--top", "0"], "--top"),
    "unknown option": (["toy.onnx", "photo.png", "-o", "out.png", "--frob"], "--frob"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_mistake_is_one_line_and_leaves_no_file(
    make_toy: Callable[..., Any],
    photograph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Any,
    case: str,
) -> None:
    make_toy("toy.onnx")
    make_toy("other.onnx", described=False)
    (tmp_path / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    arguments, message = ERRORS[case]
    status, output, errors = run("explain", *arguments)
    assert status == 2
    assert output == ""
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert errors.endswith("\n")
    assert message in errors
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("outputs", [("-o", "no/out.png"), ("-o", "out.png", "--save-npz", "no/out.npz")])
def test_an_output_that_cannot_be_written_is_found_before_the_work(
    toy: Any, photograph: Path, monkeypatch: pytest.MonkeyPatch, run: Any, outputs: tuple[str, ...]
) -> None:
    monkeypatch.setattr("sptrace.runtime.explainer.load", lambda *_, **__: pytest.fail("the work was begun"))
    monkeypatch.chdir(photograph.parent)
    assert run("explain", toy.path, photograph, *outputs)[0] == 2


def test_a_message_of_several_lines_becomes_one(
    toy: Any, photograph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SptraceError("first line\n  second line")

    monkeypatch.setattr("sptrace.runtime.explainer.load", fail)
    _, _, errors = run("explain", toy.path, photograph, "-o", tmp_path / "out.png")
    assert errors == "error: first line second line\n"


def test_the_installed_command(toy: Any, photograph: Path, tmp_path: Path) -> None:
    """In a process of its own: nothing on standard error, and the same exit status."""
    command = [sys.executable, "-c", "from sptrace.cli import main; main()", "explain", toy.path, photograph]
    good = subprocess.run(
        [*command, "-o", tmp_path / "picture.png"], capture_output=True, text=True, check=True
    )
    assert good.stderr == ""
    assert os.path.getsize(tmp_path / "picture.png") > 0
    bad = subprocess.run([*command, "-o", tmp_path / "x.txt"], capture_output=True, text=True, check=False)
    assert bad.returncode == 2
    assert len(bad.stderr.splitlines()) == 1
