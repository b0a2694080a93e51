from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

import sptrace
from sptrace import installing
from sptrace.errors import SptraceError

HERE = Path(sptrace.__file__).parent


def test_an_extra_by_its_packages() -> None:
    command = installing.command("compile")
    assert re.fullmatch(
        r"pip install 'torch>=[\d.]+' 'onnx>=[\d.]+' 'onnx-ir>=[\d.]+' 'safetensors>=[\d.]+'", command
    )


def test_an_extra_within_an_extra() -> None:
    needed = installing.packages("demo")
    assert set(installing.packages("compile")) < set(needed)
    assert any(package.startswith("scikit-image") for package in needed)
    assert not any("sptrace" in package for package in needed)


def test_an_unknown_extra() -> None:
    with pytest.raises(SptraceError, match="no extra 'nonsense'"):
        installing.command("nonsense")


def test_sources_that_nobody_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    with pytest.raises(SptraceError, match="pip install its clone"):
        installing.command("compile")


def test_nobody_is_sent_to_a_name_that_is_not_ours() -> None:
    """On PyPI anybody could register it."""
    roots = [
        HERE,
        Path(installing.__file__).parents[1] / "models",
        Path(installing.__file__).parents[1] / "passes",
    ]
    for root in roots:
        for path in root.rglob("*"):
            if path.suffix in (".py", ".js", ".html", ".cpp", ".md", ".txt"):
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"install\s+['\"]?sptrace", text), path
