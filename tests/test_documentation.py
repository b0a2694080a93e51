"""Every snippet of the README and of the documentation runs as it is written.

Python: the snippets of a page one after another, each page in a folder and a namespace of its own. Commands: those that
take seconds are run; those that take minutes or serve until they are stopped are read by the command line's own parser,
and tests of their own run them.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import sptrace
from sptrace.cli import app, main
from sptrace.errors import SptraceError

PACKAGE = Path(sptrace.__file__).parent
README = PACKAGE.parent / "README.md"
PAGES = [README, *sorted((PACKAGE / "docs").glob("*.md"))]

RUN = ("compile", "explain", "inspect", "package", "programs")
"""The commands that take seconds."""

NOT_OF_OURS = ("python3", "pip", "cmake", "build/explain", "tritonserver", "python")
"""What other lines start with: the first command and the tests' are run by CI, C++ by tests/cpp."""

ELSEWHERE = ("requests.post", "helper.make_node")
"""Python that other tests run: tests/server a request, tests/test_portability the node that OpenVINO misreads."""


def snippets(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def commands(page: Path) -> list[list[str]]:
    lines = "".join(snippets(page, "sh")).splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def pages_with(language: str) -> list[Any]:
    return [pytest.param(page, id=page.stem) for page in PAGES if snippets(page, language)]


@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_are_understood(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(page):
        if words[0] != "sptrace":
            assert words[0].startswith((".venv", *NOT_OF_OURS)), words
            continue
        with group.make_context("sptrace", words[1:]) as context:
            name, command, rest = group.resolve_command(context, words[1:])  # type: ignore[attr-defined]
            with command.make_context(name, list(rest), parent=context):
                pass


def prepared(folder: Path) -> None:
    """What the commands of a reader would find: a photograph, a cat."""
    from PIL import Image
    from skimage import data

    for name, picture in (
        ("photo.jpg", data.coffee()),
        ("photo.png", data.coffee()),
        ("cat.png", data.chelsea()),
    ):
        Image.fromarray(picture).save(folder / name)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("sh"))
def test_commands_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepared(tmp_path)
    ours = [words[1:] for words in commands(page) if words[0] == "sptrace" and words[1] in RUN]
    if not any(words[0] == "compile" for words in ours) and ours:
        ours.insert(0, ["compile", "efficientnet_lite0", "-o", "explainer.onnx"])
    for words in ours:
        with pytest.raises(SystemExit) as ended:
            main(words)
        on_a_gpu = "CUDAExecutionProvider" in words  # which this machine may lack: then a line says so
        assert not ended.value.code or on_a_gpu, words


def namespace() -> dict[str, Any]:
    """What a reader has: a network, pictures."""
    import numpy as np
    import timm
    import torch
    import torchvision

    torch.manual_seed(0)
    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (8, 3, 96, 96)).astype(np.float32)
    labels = ["espresso", "tiger cat", *(f"class {number}" for number in range(2, 10))]
    return {
        "model": torchvision.models.squeezenet1_1(num_classes=10).eval(),
        "of_one_logit": torchvision.models.squeezenet1_1(num_classes=1).eval(),
        "vit": timm.create_model("vit_tiny_patch16_224", img_size=96, depth=6, num_classes=10).eval(),
        "example": torch.from_numpy(images[:1]),
        "image": images[:1],
        "images": images,
        "labels": labels,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "vector": random.normal(size=10).astype(np.float32),
        "adjoint": lambda op: lambda rule: rule,
        "aten": torch.ops.aten,
        **{module.__name__: module for module in (sptrace, np, torch, torchvision)},
        "np": np,
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime
    import openvino

    monkeypatch.chdir(tmp_path)
    prepared(tmp_path)
    names = namespace() | {"onnxruntime": onnxruntime, "openvino": openvino}
    if page != README:
        mean_std = {name: names[name] for name in ("mean", "std", "labels")}
        sptrace.compile(names["model"], names["example"], **mean_std).save("explainer.onnx")
    for code in snippets(page, "python"):
        if any(word in code for word in ELSEWHERE):
            compile(code, str(page), "exec")
        elif (
            "CUDAExecutionProvider" in code
            and "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
        ):
            with pytest.raises(SptraceError, match="is not part of this onnxruntime"):
                exec(code, names)
        else:
            exec(code, names)
