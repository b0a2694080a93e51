"""What is said of runtimes, held against those that are installed."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from helpers import deterministic
from helpers.small_networks import classifier, transformer
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

import sptrace
from sptrace.artifact.onnx_file import OnnxFile, outline
from sptrace.deploy.portability import portability

DATA = json.loads(resources.files("sptrace.deploy").joinpath("portability.json").read_text())
RUNTIMES = {runtime["name"]: runtime for runtime in DATA["runtimes"]}
COMPUTING = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Where", "Pow", "Mod"} | {
    *("Add", "Sub", "Mul", "Div", "Max", "Min")
}
"""Operators whose second input may be data though it is of whole numbers."""


def a_loop() -> ModelProto:
    """As artifacts have them: ONNX's own example carries a sequence."""
    value = helper.make_tensor_value_info
    one = helper.make_tensor("one", TensorProto.FLOAT, [2], [1, 1])
    go = helper.make_tensor("go", TensorProto.BOOL, [], [True])
    scalars = [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, [])]
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"]), helper.make_node("Identity", ["on"], ["still"])],
        "body",
        [*scalars, value("x", TensorProto.FLOAT, [2])],
        [value("still", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [2])],
        [one],
    )
    node = helper.make_node("Loop", ["steps", "go", "image"], ["attribution"], body=body)
    inputs = [value("image", TensorProto.FLOAT, [2]), value("steps", TensorProto.INT64, [])]
    outputs = [value("attribution", TensorProto.FLOAT, [2])]
    return helper.make_model(helper.make_graph([node], "loop", inputs, outputs, [go]))


def examples() -> Iterator[ModelProto]:
    """Models of one node, from ONNX's node tests; whole numbers that say how to compute become constants."""
    from onnx.backend.test.case.node import collect_testcases

    yield a_loop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    for case in cases:
        if case.model is None or len(case.model.graph.node) != 1 or not case.data_sets:
            continue
        model = ModelProto.FromString(case.model.SerializeToString())
        given = list(zip(list(model.graph.input), case.data_sets[0][0], strict=False))
        for position, (value, data) in enumerate(given):
            whole = getattr(data, "dtype", None) == "int64"
            if position and whole and model.graph.node[0].op_type not in COMPUTING:
                model.graph.input.remove(value)
                model.graph.initializer.append(numpy_helper.from_array(data, value.name))
        yield model


@pytest.fixture(scope="module")
def models() -> dict[str, list[ModelProto]]:
    """At most four models of every operator of the artifacts' opset, those of float32 first."""
    found = defaultdict(list)
    for model in examples():
        del model.opset_import[:]
        model.opset_import.append(helper.make_opsetid("", DATA["opset"]))
        model.ir_version = 10
        try:
            checker.check_model(model, full_check=True)
        except Exception:
            continue  # of a later opset
        kinds = [value.type.tensor_type.elem_type for value in model.graph.input]
        [node] = model.graph.node
        found[node.op_type].append((kinds[:1] != [TensorProto.FLOAT], len(node.attribute), model))
    return {
        name: [model for *_, model in sorted(ones, key=lambda one: one[:2])[:4]]
        for name, ones in found.items()
    }


def in_onnxruntime(model: ModelProto) -> None:
    onnxruntime.set_default_logger_severity(4)
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def in_openvino(model: ModelProto) -> None:
    core = pytest.importorskip("openvino").Core()
    core.compile_model(core.read_model(model.SerializeToString()), "CPU")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("runtime", "load"), [("onnxruntime CPU", in_onnxruntime), ("OpenVINO CPU", in_openvino)]
)
def test_installed_runtimes_have_what_the_data_say(
    runtime: str, load: Callable[[ModelProto], None], models: dict[str, list[ModelProto]]
) -> None:
    """Nothing is claimed that is not there. (What a newer version has beyond the data does no harm.)"""

    def loads(model: ModelProto) -> bool:
        try:
            load(model)
        except Exception:
            return False
        return True

    claimed = set(DATA["operators"]) - set(RUNTIMES[runtime]["lacks"])
    assert claimed <= set(models)
    assert [name for name in sorted(claimed) if not any(loads(model) for model in models[name])] == []


def test_the_data_are_of_what_is_written() -> None:
    from sptrace.compiler.emission.builder import OPSET

    assert DATA["opset"] == OPSET
    for runtime in DATA["runtimes"]:
        assert set(runtime["lacks"]) | set(runtime["limits"]) <= set(DATA["operators"])
        assert runtime["version"]
        assert runtime["date"]
        assert runtime["source"]


@pytest.mark.parametrize("program", ["soft_pullback", "pullback_ascent", "smooth_pullback", "gradcam"])
def test_of_artifacts_everything_is_known(program: str, tmp_path: Path) -> None:
    options = {"layer": "block"} if program == "gradcam" else {}
    example = deterministic.images(2, 1, 32)
    sptrace.compile(classifier(), example, program=program, input="uint8", **options).save(tmp_path / "a")
    for one in portability(outline(tmp_path / "a")):
        assert one.unknown == ()
        if "WebGPU" not in one.runtime:
            assert one.missing == {}


def file(operators: dict[str, int], most_outputs: dict[str, int] | None = None, opset: int = 21) -> OnnxFile:
    outputs = most_outputs or dict.fromkeys(operators, 1)
    return OnnxFile(1, 10, {"": opset}, {}, (), (), operators, outputs)


def of(runtime: str, file: OnnxFile) -> Any:
    return next(one for one in portability(file) if one.runtime == runtime)


def test_what_is_missing_is_counted() -> None:
    gpu = of("onnxruntime-web WebGPU", file({"Conv": 7, "Loop": 1, "Mod": 3}))
    assert (gpu.supported, gpu.missing) == (1, {"Loop": 1, "Mod": 3})
    assert "WebAssembly" in gpu.otherwise


def test_a_norm_is_limited_if_its_deviation_is_read() -> None:
    norms = {"LayerNormalization": 2}
    assert of("onnxruntime TensorRT", file(norms)).limited == {}
    limited = of("onnxruntime TensorRT", file(norms, {"LayerNormalization": 3})).limited
    assert limited == {"LayerNormalization": "only the first output"}
    assert of("onnxruntime CUDA", file(norms, {"LayerNormalization": 3})).limited == {}


def test_what_is_not_known_is_not_claimed() -> None:
    strange = of("onnxruntime CPU", file({"Conv": 7, "Swizzle": 1}))
    assert (strange.supported, strange.unknown) == (1, ("Swizzle",))
    assert of("onnxruntime CPU", file({"Conv": 7}, opset=25)).unknown == ("Conv",)


def test_outputs_are_counted(tmp_path: Path) -> None:
    sptrace.compile(transformer(), deterministic.images(2, 1, 32)).save(tmp_path / "a")
    counted = outline(tmp_path / "a").most_outputs
    model = onnx.load(tmp_path / "a")
    assert counted == {
        name: max(len(node.output) for node in model.graph.node if node.op_type == name) for name in counted
    }
    assert counted["LayerNormalization"] == 3
