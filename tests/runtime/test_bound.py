"""Buffers that stay where they are, on the CPU: all but the copies between devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.small_networks import classifier, images
from helpers.small_networks import small as small_network

import sptrace
from sptrace.errors import SptraceError

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


def compiled(folder: Path, program: str = "soft_pullback", **options: Any) -> Path:
    path = folder / f"{program}-{'-'.join(options)}.onnx"
    if not path.exists():
        sptrace.compile(classifier(), images(1), program=program, mean=MEAN, std=STD, **options).save(path)
    return path


def same(first: sptrace.Explanation, second: sptrace.Explanation) -> None:
    for name, wanted in vars(first).items():
        given = getattr(second, name)
        if isinstance(wanted, np.ndarray):
            np.testing.assert_array_equal(given, wanted, err_msg=name)
        else:
            assert given == wanted, name


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("soft_pullback", {}),
        ("soft_pullback", {"layer": "block.3"}),
        ("pullback_ascent", {"clamp": "every", "steps": 2, "alpha": 3.0}),
        ("smooth_pullback", {"samples": 2}),
    ],
)
@pytest.mark.parametrize("fixed", [True, False])
def test_the_numbers_are_those_of_explain(
    folder: Path, program: str, options: dict[str, Any], fixed: bool
) -> None:
    path = compiled(folder, program, **options)
    free, loaded = sptrace.load(path), sptrace.load(path, batch=2 if fixed else None)
    bound = loaded.bind(2)
    first, second = images(2).numpy(), images(2, seed=5).numpy()
    same(free.explain(first, [1, 2]), bound.explain(first, [1, 2]))
    same(free.explain(second), bound.explain(second))
    same(free.explain(second), loaded.explain(second))


def test_a_direction(folder: Path) -> None:
    explainer = sptrace.load(compiled(folder, direction=True))
    direction = np.linspace(-1, 1, 7, dtype=np.float32)
    picture = images(2).numpy()
    bound = explainer.bind(2)
    assert set(bound.inputs) == {"image", "direction"}
    same(explainer.explain(picture, direction=direction), bound.explain(picture, direction=direction))


def test_buffers_stay_where_they_are(folder: Path) -> None:
    bound = sptrace.load(compiled(folder)).bind(2)
    buffers = {**bound.inputs, **bound.outputs}
    assert set(buffers) == {"image", "target", "attribution", "logits"}
    addresses = {name: buffer.data_ptr() for name, buffer in buffers.items()}
    kept = bound.explain(images(2).numpy(), 1)
    before = kept.attribution.copy()
    bound.explain(images(2, seed=5).numpy(), 2)
    assert addresses == {name: buffer.data_ptr() for name, buffer in buffers.items()}
    np.testing.assert_array_equal(kept.attribution, before)


def test_data_that_is_there_already(folder: Path) -> None:
    explainer = sptrace.load(compiled(folder))
    bound = explainer.bind(2)
    picture = images(2).numpy()
    bound.inputs["image"].update_inplace(picture)
    bound.inputs["target"].update_inplace(np.array([3, -1]))
    bound.run()
    wanted = explainer.explain(picture, [3, -1])
    np.testing.assert_array_equal(bound.outputs["attribution"].numpy(), wanted.attribution)
    np.testing.assert_array_equal(bound.outputs["logits"].numpy(), wanted.logits)


def test_mistakes(folder: Path) -> None:
    path = compiled(folder)
    with pytest.raises(SptraceError, match="3 images where 2 are bound"):
        sptrace.load(path).bind(2).explain(images(3).numpy())
    with pytest.raises(SptraceError, match=r"cannot bind a batch of 3: give 2"):
        sptrace.load(path, batch=2).bind(3)
    with pytest.raises(SptraceError, match=r"cannot bind a batch of 0: give 1 or more"):
        sptrace.load(path).bind(0)
    with pytest.raises(SptraceError, match=r"1 images where the artifact was loaded for 2"):
        sptrace.load(path, batch=2).explain(images(1).numpy())
    with pytest.raises(SptraceError, match=r"cannot take 0 images"):
        sptrace.load(path, batch=0)
    with pytest.raises(SptraceError, match=r"no memory on cuda:1"):
        sptrace.load(path).bind(2, device="cuda", device_id=1)


def test_a_fixed_batch_leaves_no_size_to_be_computed(tmp_path: Path) -> None:
    """What a CUDA graph needs: the class token of a transformer is as many as there are pictures."""

    def body(self: Any, x: torch.Tensor) -> torch.Tensor:
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)).mean(1)

    network = small_network(
        body, stem=torch.nn.Conv2d(3, 8, 4, 4), head=torch.nn.Linear(8, 5), token=torch.zeros(1, 1, 8)
    )
    sptrace.compile(network, images(1)).save(tmp_path / "tokens.onnx")
    kinds = {}
    for batch in (None, 2):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        if batch is not None:
            options.add_free_dimension_override_by_name("N", batch)
        onnxruntime.InferenceSession(str(tmp_path / "tokens.onnx"), options)
        kinds[batch] = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert "Shape" in kinds[None]
    assert "Shape" not in kinds[2]
