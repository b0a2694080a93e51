"""The same file in runtimes that share nothing with the one it was verified in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import deterministic
from helpers.runtimes import Evaluate, agree, openvino, reference
from helpers.small_networks import classifier, small
from torch import nn

import sptrace


def feeds(size: int, count: int = 2) -> dict[str, np.ndarray]:
    image = deterministic.images(2, count, size).numpy()
    return {"image": image, "target": np.array([3, -1] * (count // 2), np.int64)}


SQUARE = {
    "linear on matrices": small(
        lambda self, x: self.fc(x.mean((2, 3)).repeat(1, 16)).relu(), fc=nn.Linear(48, 48)
    ),
    "linear on tokens": small(
        lambda self, x: self.fc(x.flatten(2).mT.repeat(1, 1, 16)).relu().mean(1), fc=nn.Linear(48, 48)
    ),
    "strided convolution": small(
        lambda self, x: self.conv(x.repeat(1, 16, 1, 1)).relu().mean((2, 3)), conv=nn.Conv2d(48, 48, 4, 4)
    ),
    "overlapping convolution": small(
        lambda self, x: self.conv(x.repeat(1, 16, 1, 1)).relu().mean((2, 3)), conv=nn.Conv2d(48, 48, 3, 2, 1)
    ),
    "transposed convolution": small(
        lambda self, x: self.conv(x.repeat(1, 16, 1, 1)).relu().mean((2, 3)),
        conv=nn.ConvTranspose2d(48, 48, 2, 2),
    ),
}


@pytest.mark.parametrize("name", SQUARE)
def test_square_weights_serve_one_direction_each(name: str, tmp_path: Path) -> None:
    """OpenVINO takes one for the other where both read one constant; see `OnnxBuilder.apart`."""
    path = tmp_path / "program.onnx"
    sptrace.compile(SQUARE[name], deterministic.images(2, 1, 32)).save(path)
    agree(path, openvino, feeds(32))


@pytest.mark.parametrize(
    ("evaluate", "program"),
    [
        (openvino, "soft_pullback"),
        (openvino, "gradient"),
        (openvino, "pullback_ascent"),
        # OpenVINO's whole numbers have 32 bits, too few for the noise of smooth_pullback: see docs/deployment.md.
        (reference, "soft_pullback"),
        (reference, "gradient"),
        (reference, "pullback_ascent"),
        (reference, "smooth_pullback"),
    ],
)
def test_programs_on_a_small_network(evaluate: Evaluate, program: str, tmp_path: Path) -> None:
    path = tmp_path / "program.onnx"
    sptrace.compile(classifier(), deterministic.images(2, 1, 32), program=program).save(path)
    agree(path, evaluate, feeds(32))


def test_the_file_asks_for_no_more_than_promised(tmp_path: Path) -> None:
    """Opset 21 and IR 10 are what onnxruntime 1.21 loads; `tests/cpp` runs a file in it."""
    path = tmp_path / "program.onnx"
    sptrace.compile(classifier(), torch.zeros(1, 3, 32, 32)).save(path)
    model = onnx.load(path)
    assert model.ir_version <= 10
    assert {item.domain: item.version for item in model.opset_import} == {"": 21}
