"""Runtimes that share nothing with onnxruntime, and whether they give the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

TOLERANCE = 1e-4
"""Of the largest value."""

Evaluate = Callable[[Path, dict[str, np.ndarray]], dict[str, np.ndarray]]


def openvino(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What OpenVINO answers, in float32: by itself it may compute in less."""
    core = pytest.importorskip("openvino").Core()
    answers = core.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feeds)
    return {name: answers[name] for name in ("attribution", "logits")}


def reference(path: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX's own evaluator answers, which is written in NumPy."""
    names = ["attribution", "logits"]
    return dict(zip(names, ReferenceEvaluator(onnx.load(path)).run(names, feeds), strict=True))


def agree(path: Path, evaluate: Evaluate, feeds: dict[str, np.ndarray]) -> None:
    """OnnxRuntime and another runtime give the same numbers."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = evaluate(path, feeds)
    for name, expected in zip(given, session.run(list(given), feeds), strict=True):
        error = np.abs(given[name] - expected).max() / np.abs(expected).max()
        assert error <= TOLERANCE, f"{name}: {error:.1e}"
