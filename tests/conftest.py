"""Fixtures that more than one test file uses."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sptrace.artifact.description import (
    METADATA_KEY,
    Description,
    GateCount,
    Measured,
    Preprocessing,
    Verification,
)
from sptrace.artifact.softening import Softening

# Before torch is loaded, here and in the processes that tests start. The networks are so small that threads would only
# wait for one another, and files are tested side by side. What a compile measures depends on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

LABELS = (
    "tench, Tinca tinca",
    "tabby, tabby cat",
    "crane",
    "crane",
    "Cardigan, Cardigan Welsh corgi",
    "cardigan",
    "espresso",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The golden files first: if they disagree, nothing else matters. Then what is dear to begin in two processes."""
    first = ["test_golden.py", "test_mutations.py"]
    items.sort(key=lambda item: first.index(item.path.name) if item.path.name in first else len(first))


@dataclass(frozen=True)
class Toy:
    """An artifact with known answers: logits = (mean over the pixels)^2 @ weight, and their gradient."""

    path: Path
    weight: np.ndarray
    description: Description

    def logits(self, image: np.ndarray) -> np.ndarray:
        return image.mean(axis=(2, 3)) ** 2 @ self.weight

    def attribution(self, image: np.ndarray, target: np.ndarray) -> np.ndarray:
        pixels = image.shape[2] * image.shape[3]
        gradient = 2 * image.mean(axis=(2, 3)) * self.weight.T[target] / pixels
        return np.broadcast_to(gradient[:, :, None, None], image.shape)


@pytest.fixture
def make_toy(tmp_path: Path) -> Callable[..., Toy]:
    """Write toy artifacts: `make_toy(name, labels=, preprocessing=, described=)`."""

    def make(
        name: str = "toy.onnx",
        labels: tuple[str, ...] | None = LABELS,
        preprocessing: Preprocessing | None = None,
        described: bool = True,
    ) -> Toy:
        preprocessing = preprocessing or Preprocessing(
            size=(24, 32), resize=40, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
        )
        weight = np.random.default_rng(7).normal(size=(3, len(LABELS))).astype(np.float32)
        description = Description(
            version="0.0",
            program="toy_pullback",
            network="toy:mean",
            weights="random",
            parameters=weight.size,
            classes=len(LABELS),
            preprocessing=preprocessing,
            softening=Softening("paper"),
            gates=(GateCount("relu", "normal", 0.6, 17), GateCount("max_pool", "softmax", 0.3, 1)),
            labels=labels,
            verification=Verification(
                tolerance=1e-4,
                measure="norm",
                onnxruntime="1.2.3",
                torch="4.5.6",
                batches=(Measured(2, 1e-6, 2e-6, 3e-6, 4e-6),),
            ),
        )
        model = _model(weight, preprocessing.size)
        if described:
            helper.set_model_props(model, {METADATA_KEY: description.to_json()})
        onnx.checker.check_model(model)
        path = tmp_path / name
        onnx.save(model, path)
        return Toy(path, weight, description)

    return make


@pytest.fixture
def toy(make_toy: Callable[..., Toy]) -> Toy:
    """The toy artifact with class names."""
    return make_toy()


def _model(weight: np.ndarray, size: tuple[int, int]) -> onnx.ModelProto:
    image_shape = ["N", 3, *size]
    constants = {
        "weight": weight,
        "minus_one": np.array(-1, np.int64),
        "factor": np.array(2 / (size[0] * size[1]), np.float32),
        "pooled_shape": np.array([-1, 3, 1, 1], np.int64),
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["mean"]),
        helper.make_node("Mul", ["mean", "mean"], ["square"]),
        helper.make_node("MatMul", ["square", "weight"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["predicted"], axis=1, keepdims=0),
        helper.make_node("Equal", ["target", "minus_one"], ["free"]),
        helper.make_node("Where", ["free", "predicted", "target"], ["chosen"]),
        helper.make_node("Transpose", ["weight"], ["rows"]),
        helper.make_node("Gather", ["rows", "chosen"], ["row"], axis=0),
        helper.make_node("Mul", ["mean", "row"], ["product"]),
        helper.make_node("Mul", ["product", "factor"], ["gradient"]),
        helper.make_node("Reshape", ["gradient", "pooled_shape"], ["cell"]),
        helper.make_node("Shape", ["image"], ["image_shape"]),
        helper.make_node("Expand", ["cell", "image_shape"], ["attribution"]),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, image_shape),
            helper.make_tensor_value_info("target", TensorProto.INT64, ["N"]),
        ],
        [
            helper.make_tensor_value_info("attribution", TensorProto.FLOAT, image_shape),
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", weight.shape[1]]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.fixture(scope="session")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """EfficientNet-Lite0 with ImageNet weights, by program and size: an artifact that takes photographs and draws."""
    from sptrace.cli import main

    folder = tmp_path_factory.mktemp("lite0")

    def artifact(program: str, size: int = 224) -> Path:
        path = folder / str(size) / f"{program}.onnx"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            options = f"--program {program} --size {size} --input uint8 --overlay".split()
            with pytest.raises(SystemExit) as exit_:
                main(["compile", "efficientnet_lite0", *options, "-o", str(path)])
            assert exit_.value.code in (0, None)
        return path

    return artifact
