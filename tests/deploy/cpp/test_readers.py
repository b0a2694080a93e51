"""The C++ program's readers, under AddressSanitizer, with inputs changed at random."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.consumers import folder, require

import sptrace

FUZZ = Path(__file__).parents[2] / "fuzz"


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers = folder("ORT_ROOT", "onnxruntime's headers")
    require(shutil.which("g++"), "g++")
    (header,) = headers.rglob("onnxruntime_cxx_api.h")
    program = tmp_path_factory.mktemp("fuzz") / "readers"
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [
        "-isystem",
        header.parent,
        "-I",
        Path(sptrace.__file__).parent / "deploy" / "cpp",
        FUZZ / "readers.cpp",
    ]
    done = subprocess.run(
        ["g++", "-std=c++17", *sanitizers, *sources, "-o", program, "-ldl"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return program


def test_any_input_is_read_or_refused(readers: Path) -> None:
    done = subprocess.run(
        [readers, FUZZ / "corpus", "3000", "1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("3000 inputs") == 3
