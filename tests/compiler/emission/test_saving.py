from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from helpers.small_networks import classifier, images

import sptrace
from sptrace.compiler.emission import saving


@pytest.fixture(scope="module")
def program() -> sptrace.Program:
    return sptrace.compile(classifier(), images(2), program="pullback_ascent")


def test_weights_are_counted_in_loops_too(program: sptrace.Program) -> None:
    proto = onnx.load_from_string(program.onnx_model)
    (loop,) = (node for node in proto.graph.node if node.op_type == "Loop")
    graphs = [proto.graph, *(item.g for item in loop.attribute if item.name == "body")]
    sizes = [sum(onnx.numpy_helper.to_array(item).nbytes for item in graph.initializer) for graph in graphs]
    assert saving.weights_size(program.model) == sum(sizes)
    assert sizes[1] > 1000


def test_weights_that_do_not_fit_into_one_file(
    program: sptrace.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program.save(tmp_path / "one.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]
    monkeypatch.setattr(saving, "LARGEST", saving.weights_size(program.model) - 1)
    with pytest.raises(sptrace.SptraceError, match="more than one ONNX file holds"):
        _ = program.onnx_model
    (tmp_path / "two.onnx").write_text("an older file")
    program.save(tmp_path / "two.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.onnx", "two.onnx", "two.onnx.data"]
    assert (tmp_path / "two.onnx").stat().st_size < (tmp_path / "one.onnx").stat().st_size
    image = images(1).numpy()
    one, two = (sptrace.load(tmp_path / f"{name}.onnx") for name in ("one", "two"))
    np.testing.assert_array_equal(one.attribute(image, 3), two.attribute(image, 3))
    assert one.description == two.description
    (tmp_path / "two.onnx.data").unlink()
    with pytest.raises(sptrace.SptraceError, match="cannot load"):
        sptrace.load(tmp_path / "two.onnx")


def test_a_program_that_does_not_fit_is_verified_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "LARGEST", 0)
    description = sptrace.compile(classifier(), images(2)).description
    assert description.verification is not None
    assert len(description.verification.batches) == 2


def test_what_is_not_small_is_loaded_from_a_file(
    program: sptrace.Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is gone when it has been loaded."""
    monkeypatch.setattr(saving, "SMALL", 0)
    with saving.loadable(program.model) as given:
        assert isinstance(given, str)
        assert Path(given).read_bytes() == program.onnx_model
    assert not Path(given).parent.exists()


def test_nothing_is_left_of_a_file_that_cannot_be_written(
    program: sptrace.Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "LARGEST", 0)

    def full(*arguments: object, **keywords: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving.ir, "save", full)
    with pytest.raises(sptrace.SptraceError, match="No space left"):
        program.save(tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []
