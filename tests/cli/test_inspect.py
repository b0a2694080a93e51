from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from sptrace.artifact.description import METADATA_KEY, Description, Preprocessing
from sptrace.cli import main


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `sptrace inspect`: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit_:
            main(["inspect", *(str(argument) for argument in arguments)])
        output, errors = capsys.readouterr()
        return int(exit_.value.code or 0), output, errors

    return run


def fields(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


def test_everything_is_shown(toy: Any, run: Any) -> None:
    status, output, errors = run(toy.path)
    assert (status, errors) == (0, "")
    lines = fields(output)
    for expected in (
        ["program", "toy_pullback"],
        ["softening", "paper"],
        ["network", "toy:mean"],
        ["weights", "random"],
        ["classes", "7"],
        ["format", "ONNX", "IR", "10,", "opset", "ai.onnx", "21"],
        ["input", "image", "float32", "[N,", "3,", "24,", "32]"],
        ["input", "target", "int64", "[N]"],
        ["output", "attribution", "float32", "[N,", "3,", "24,", "32]"],
        ["output", "logits", "float32", "[N,", "7]"],
        ["range", "black", "-1,", "white", "1"],
        ["mean", "0.5,", "0.4,", "0.3", "(applied", "by", "the", "artifact)"],
        ["std", "0.2,", "0.25,", "0.3", "(applied", "by", "the", "artifact)"],
        ["relu", "normal", "0.6", "17"],
        ["max_pool", "softmax", "0.3", "1"],
        ["Mul", "3"],
        ["ArgMax", "1"],
        ["2", "torch.fx", "program", "1.0e-06", "2.0e-06"],
        ["2", "eager", "PyTorch", "3.0e-06", "4.0e-06"],
    ):
        assert expected in lines
    assert "Operators (14 nodes)" in output
    assert "shorter side to 40, bilinear, centre crop to 24 x 32" in output
    assert "of attributions by the norm; tolerance 1e-04" in output
    assert "onnxruntime 1.2.3, torch 4.5.6" in output


def test_it_can_be_copied(toy: Any, run: Any) -> None:
    assert run(toy.path)[1].isascii()


def test_json_holds_everything(toy: Any, run: Any) -> None:
    status, output, errors = run(toy.path, "--json")
    assert (status, errors) == (0, "")
    everything = json.loads(output)
    assert everything["file"] == str(toy.path)
    assert everything["size"] == toy.path.stat().st_size
    assert everything["ir_version"] == 10
    assert everything["opsets"] == {"": 21}
    assert everything["operators"]["Mul"] == 3
    assert everything["inputs"][0] == {"name": "image", "dtype": "float32", "shape": ["N", 3, 24, 32]}
    assert Description.from_json(json.dumps(everything["description"])) == toy.description


def test_portability(toy: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    status, output, errors = run(toy.path, "--portability")
    assert (status, errors) == (0, "")
    count = len(json.loads(run(toy.path, "--json")[1])["operators"])
    for runtime in ("onnxruntime CPU", "onnxruntime CUDA", "onnxruntime TensorRT", "OpenVINO CPU"):
        assert f"{runtime} {count} of {count}".split() in [line[:5] for line in fields(output)]
    assert "measured" in output
    report = json.loads(run(toy.path, "--portability", "--json")[1])["portability"]
    assert [one["supported"] for one in report] == [count] * 6


def test_what_is_missing_is_not_shown(make_toy: Callable[..., Any], run: Any) -> None:
    toy = make_toy(labels=None, preprocessing=Preprocessing((24, 32), None, "bicubic"))
    model = onnx.load(toy.path)
    description = replace(toy.description, verification=None, gates=())
    helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, toy.path)
    status, output, _ = run(toy.path)
    assert status == 0
    assert "(without names)" in output
    assert "squeezed to 24 x 32, bicubic" in output
    assert "mean" not in [line[0] for line in fields(output) if line]
    assert "tolerance" not in output


@pytest.mark.parametrize("name", ["nowhere.onnx", "other.onnx", "text.onnx", "newer.onnx", "damaged.onnx"])
def test_a_mistake_is_one_line(make_toy: Callable[..., Any], tmp_path: Path, run: Any, name: str) -> None:
    make_toy("other.onnx", described=False)
    (tmp_path / "text.onnx").write_text("a text")
    for damaged, metadata in (("newer.onnx", '{"format": 99, "version": "9.9"}'), ("damaged.onnx", "{")):
        model = onnx.load(tmp_path / "other.onnx")
        helper.set_model_props(model, {METADATA_KEY: metadata})
        onnx.save(model, tmp_path / damaged)
    status, output, errors = run(tmp_path / name)
    assert (status, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    expected = {
        "nowhere.onnx": "No such file",
        "other.onnx": "was not written by sptrace",
        "text.onnx": "is not an ONNX file",
        "newer.onnx": "upgrade sptrace",
        "damaged.onnx": "compile it again",
    }
    assert expected[name] in errors


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([])
    assert not exit_.value.code
    output = capsys.readouterr().out
    assert "explain" in output
    assert "inspect" in output
