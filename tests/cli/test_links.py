"""What the command line shows of outputs by their link."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.small_networks import images, small
from PIL import Image
from torch import nn

import sptrace
from sptrace.cli import main
from sptrace.cli.evaluate import _possible
from sptrace.errors import SptraceError

Run = Callable[..., list[str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line without a mistake: its lines."""

    def run(*arguments: object) -> list[str]:
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        output, errors = capsys.readouterr()
        assert (exit_.value.code or 0, errors) == (0, "")
        return str(output).splitlines()

    return run


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(3).integers(256, size=(16, 16, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def one_output(end: nn.Module) -> nn.Module:
    return small(lambda self, x: self.end(20 * self.head(x.mean((2, 3)))), head=nn.Linear(3, 1), end=end)


@pytest.mark.parametrize(
    ("end", "arguments", "said"),
    [
        (nn.Sigmoid(), {"labels": ["no", "yes"]}, "sigmoid"),
        (nn.Identity(), {}, "none"),
        (nn.Sigmoid(), {"keep_link": True}, "identity"),
    ],
    ids=["pair", "plain", "kept"],
)
def test_what_is_shown(
    end: nn.Module, arguments: dict[str, object], said: str, run: Run, photograph: Path, tmp_path: Path
) -> None:
    """The numbers of the table against the original network in float64."""
    path = tmp_path / "one.onnx"
    network = one_output(end)
    sptrace.compile(network, images(1), **arguments).save(path)  # type: ignore[arg-type]
    inspected = " ".join(" ".join(run("inspect", path)).split())
    assert f"(link {said})" in inspected
    assert ("the network ends in sigmoid, which was taken off" in inspected) is (said == "sigmoid")
    header, *rows = run("explain", path, photograph, "-o", tmp_path / "why.png", "--top", 2)
    image = torch.from_numpy(
        sptrace.photo.prepare(sptrace.photo.read(photograph), sptrace.load(path).description.preprocessing)
    )
    answer = float(network.double()(image.double()))
    if said == "sigmoid":
        logit = float(np.log(answer / (1 - answer)))
        assert header.split() == ["index", "class", "probability", "logit"]
        assert [row.split() for row in rows[:2]] == [
            ["1", "yes", f"{answer:.2%}", f"{logit:.3f}"],
            ["0", "no", f"{1 - answer:.2%}", f"{-logit:.3f}"],
        ]
    elif said == "none":
        assert header.split() == ["index", "output", "value"]
        assert rows[0].split() == ["0", "output", "0", f"{answer:.3f}"]
        assert "%" not in "".join(rows)
    else:
        assert header.split() == ["index", "class", "probability"]
        assert rows[0].split() == ["0", "class", "0", f"{answer:.2%}"]


def test_a_class_by_its_name(run: Run, photograph: Path, tmp_path: Path) -> None:
    path, numbers = tmp_path / "one.onnx", [tmp_path / "no.npz", tmp_path / "yes.npz"]
    sptrace.compile(one_output(nn.Sigmoid()), images(1), labels=["no", "yes"]).save(path)
    for target, file in zip(("no", "yes"), numbers, strict=True):
        run("explain", path, photograph, "-o", tmp_path / "why.png", "--target", target, "--save-npz", file)
    no, yes = (np.load(file) for file in numbers)
    assert (no["target"], yes["target"]) == (0, 1)
    np.testing.assert_array_equal(no["attribution"], -yes["attribution"])


def test_the_link_is_said_when_compiling(run: Run, tmp_path: Path) -> None:
    exported, artifact = tmp_path / "one.pt2", tmp_path / "one.onnx"
    batch = torch.export.Dim("batch")
    torch.export.save(
        torch.export.export(one_output(nn.Sigmoid()), (images(2),), dynamic_shapes=({0: batch},)), exported
    )
    cases: dict[tuple[str, ...], tuple[str, str | None]] = {
        (): ("sigmoid", "sigmoid"),
        ("--keep-link",): ("identity", None),
        ("--link", "none"): ("none", None),
    }
    for options, wanted in cases.items():
        lines = run("compile", exported, "-o", artifact, *options)
        assert ("sigmoid at its end taken off" in "".join(lines)) is (wanted[1] is not None)
        description = sptrace.load(artifact).description
        assert (description.link, description.taken_off) == wanted


def test_what_cannot_be_measured_is_left_out() -> None:
    wanted = ["infidelity", "insertion", "deletion", "random_logit"]
    assert _possible(wanted, "softmax", 3) == (wanted, [])
    possible, notes = _possible(wanted, "none", 1)
    assert possible == ["infidelity"]
    assert notes[0].startswith("Left out: insertion (the network's outputs are plain values")
    with pytest.raises(SptraceError, match="nothing can be measured"):
        _possible(["insertion"], "none", 3)
