from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from PIL import Image

from sptrace.artifact.description import METADATA_KEY, Preprocessing
from sptrace.errors import SptraceError, SptraceWarning
from sptrace.runtime import explainer as runtime
from sptrace.runtime import photo


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (3, 3, 24, 32)).astype(np.float32)


@pytest.fixture
def explainer(toy: Any) -> runtime.Explainer:
    return runtime.load(toy.path)


def refused(message: str) -> Any:
    return pytest.raises(SptraceError, match=message)


def test_the_answer_is_the_artifacts(toy: Any, explainer: runtime.Explainer, images: np.ndarray) -> None:
    explanation = explainer.explain(images, [4, 0, 6])
    assert explanation.attribution.dtype == explanation.logits.dtype == np.float32
    assert explanation.target.dtype == np.int64
    assert explanation.target.tolist() == [4, 0, 6]
    np.testing.assert_allclose(explanation.logits, toy.logits(images), rtol=1e-4, atol=1e-7)
    expected = toy.attribution(images, explanation.target)
    np.testing.assert_allclose(explanation.attribution, expected, rtol=1e-4, atol=1e-9)


def test_the_explainer_describes_itself(toy: Any, explainer: runtime.Explainer) -> None:
    assert explainer.description == toy.description
    assert explainer.labels == toy.description.labels
    assert explainer.classes == 7
    assert explainer.input_size == (24, 32)
    assert explainer.input_range == (-1.0, 1.0)
    assert explainer.providers == ("CPUExecutionProvider",)


def test_without_a_target_the_predicted_class_is_explained(
    toy: Any, explainer: runtime.Explainer, images: np.ndarray
) -> None:
    images[0] = images[0].clip(0)  # so that the classes differ
    predicted = toy.logits(images).argmax(axis=1)
    explanation = explainer.explain(images)
    np.testing.assert_array_equal(explanation.target, predicted)
    expected = toy.attribution(images, predicted)
    np.testing.assert_allclose(explanation.attribution, expected, rtol=1e-4, atol=1e-9)
    mixed = explainer.explain(images, [-1, 5, -1])
    assert mixed.target.tolist() == [predicted[0], 5, predicted[2]]


def test_attribute_gives_the_attribution_alone(explainer: runtime.Explainer, images: np.ndarray) -> None:
    np.testing.assert_array_equal(explainer.attribute(images, 3), explainer.explain(images, 3).attribution)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (5, [5, 5, 5]),
        (np.int32(5), [5, 5, 5]),
        (np.array(5), [5, 5, 5]),
        ((1, 2, 3), [1, 2, 3]),
        (np.array([1, 2, 3], np.uint8), [1, 2, 3]),
        ("espresso", [6, 6, 6]),
        ("  ESPRESSO ", [6, 6, 6]),
        ("tench, Tinca tinca", [0, 0, 0]),
        ("TENCH, tinca TINCA", [0, 0, 0]),
        ("tinca tinca", [0, 0, 0]),
        ("Tabby Cat", [1, 1, 1]),
        ("cardigan", [5, 5, 5]),  # the exact label, though it is also a part of another
        ("Cardigan Welsh corgi", [4, 4, 4]),
        (["espresso", 2, "tabby"], [6, 2, 1]),
    ],
)
def test_targets_are_given_in_many_ways(
    explainer: runtime.Explainer, images: np.ndarray, target: Any, expected: list[int]
) -> None:
    assert explainer.explain(images, target).target.tolist() == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (7, "there is no class 7: give 0 to 6"),
        (-2, "there is no class -2"),
        ([0, 1, 99], "there is no class 99"),
        ([0, 1], "2 targets for 3 images"),
        (np.array([[0, 1, 2]]), "1 targets for 3 images"),
        (np.array([[0], [1], [2]]), "is not a class"),
        (1.5, "1.5 is not a class"),
        (np.array([0.0, 1.0, 2.0]), "is not a class"),
        (True, "True is not a class"),
        ("crane", r"several classes: give one of the indices 2 \(crane\), 3 \(crane\)"),
        ("CARDIGAN", r"several classes: .*4 \(Cardigan, Cardigan Welsh corgi\), 5 \(cardigan\)"),
        ("expreso", r"no class is called 'expreso': did you mean 6 \(espresso\)\?"),
        ("tinca tinka", r"did you mean 0 \(tench, Tinca tinca\)\?"),
        ("zzzz", "no class is called 'zzzz': give its index, 0 to 6"),
        ("", "no class is called ''"),
    ],
)
def test_what_is_no_class_is_refused(
    explainer: runtime.Explainer, images: np.ndarray, target: Any, message: str
) -> None:
    with refused(message) as caught:
        explainer.explain(images, target)
    assert "\n" not in str(caught.value)


def test_an_image_of_another_scale_is_warned_about_once(toy: Any, images: np.ndarray) -> None:
    explainer = runtime.load(toy.path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.explain(images)
        explainer.explain((images * 1.0015).clip(-1.0015, 1.0015))  # rounding
    told = r"^the image has values from \S+ to \S+, outside of input_range, -1 to 1: scale pictures"
    with pytest.warns(SptraceWarning, match=told) as seen:  # noqa: PT031  # the second is to say nothing
        given = explainer.explain(images * 1024, 4)
        explainer.explain(images * 1024, 4)
    assert [warning.filename for warning in seen] == [__file__]
    np.testing.assert_allclose(given.attribution, toy.attribution(images * 1024, given.target), rtol=1e-4)


def test_other_ways_to_explain_warn_too(toy: Any, images: np.ndarray) -> None:
    for of in (lambda explainer: explainer.attribute, lambda explainer: explainer.bind(3).explain):
        explainer = runtime.load(toy.path)
        with pytest.warns(SptraceWarning, match="outside of input_range"):
            of(explainer)(images + 3)
        assert explainer.warned


def test_whoever_means_it_is_spared(toy: Any, images: np.ndarray) -> None:
    explainer = runtime.load(toy.path)
    explainer.warned = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explainer.explain(images * 7)


def test_without_names_only_indices_are_known(make_toy: Callable[..., Any], images: np.ndarray) -> None:
    explainer = runtime.load(make_toy(labels=None).path)
    assert explainer.explain(images, 3).label(1) == "class 3"
    with refused("no class names: instead of 'espresso' give 0 to 6"):
        explainer.explain(images, "espresso")


def test_labels_and_probabilities(explainer: runtime.Explainer, images: np.ndarray) -> None:
    explanation = explainer.explain(images, [0, 1, 6])
    assert [explanation.label(sample) for sample in range(3)] == [
        "tench, Tinca tinca",
        "tabby, tabby cat",
        "espresso",
    ]
    probabilities = explanation.probabilities
    assert probabilities.dtype == np.float32
    expected = np.exp(explanation.logits) / np.exp(explanation.logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_large_logits_have_probabilities() -> None:
    logits = np.array([[1000.0, 0.0]], np.float32)
    explanation = runtime.Explanation(np.zeros((1, 3, 1, 1), np.float32), logits, np.array([0]), None)
    np.testing.assert_array_equal(explanation.probabilities, [[1, 0]])


def test_other_floating_point_types_are_converted(explainer: runtime.Explainer, images: np.ndarray) -> None:
    expected = explainer.explain(images, 0).attribution
    np.testing.assert_array_equal(explainer.explain(images.astype(np.float64), 0).attribution, expected)
    strided = np.asfortranarray(images)
    np.testing.assert_array_equal(explainer.explain(strided, 0).attribution, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (
            np.zeros((1, 3, 24, 32), np.uint8),
            "is uint8: pass float32, .* black is -1 and white 1",
        ),
        (np.zeros((1, 3, 24, 32), np.int64), "is int64"),
        (np.zeros((3, 24, 32), np.float32), r"no batch dimension .* pass image\[None\]"),
        (np.zeros((1, 24, 32, 3), np.float32), r"channels come last .* image\.transpose\(0, 3, 1, 2\)"),
        (
            np.zeros((1, 3, 32, 24), np.float32),
            r"is \[1, 3, 32, 24\] and .* takes \[N, 3, 24, 32\]",
        ),
        (np.zeros((1, 1, 24, 32), np.float32), r"is \[1, 1, 24, 32\]"),
        (np.zeros((0, 3, 24, 32), np.float32), r"is \[0, 3, 24, 32\]"),
        (np.zeros((), np.float32), r"is \[\]"),
        (np.full((1, 3, 24, 32), np.nan, np.float32), "NaN or infinite"),
        (np.full((1, 3, 24, 32), 1e300), "NaN or infinite"),
    ],
)
def test_what_is_no_image_is_refused(explainer: runtime.Explainer, image: np.ndarray, message: str) -> None:
    with refused(message) as caught:
        explainer.explain(image)
    assert "\n" not in str(caught.value)


def test_uint8_advice_follows_the_range_of_the_artifact(make_toy: Callable[..., Any]) -> None:
    explainer = runtime.load(make_toy(preprocessing=Preprocessing((24, 32), input_range=(0.0, 255.0))).path)
    with refused("black is 0 and white 255"):
        explainer.explain(np.zeros((1, 3, 24, 32), np.uint8))


def test_what_is_no_artifact_is_refused(tmp_path: Path, make_toy: Callable[..., Any]) -> None:
    with refused("there is no file"):
        runtime.load(tmp_path / "nowhere.onnx")
    with refused("there is no file"):
        runtime.load(tmp_path)
    (tmp_path / "text.onnx").write_text("not ONNX")
    with refused(r"cannot load .*text\.onnx") as caught:
        runtime.load(tmp_path / "text.onnx")
    assert "\n" not in str(caught.value)
    with refused("was not written by sptrace"):
        runtime.load(make_toy(described=False).path)


def test_a_provider_that_is_not_there_is_refused(toy: Any) -> None:
    for provider in ("NoSuchExecutionProvider", ("NoSuchExecutionProvider", {"device_id": 0})):
        with refused(r"NoSuchExecutionProvider is not part of .*available are .*CPUExecutionProvider"):
            runtime.load(toy.path, providers=[provider, "CPUExecutionProvider"])


def test_a_provider_that_does_not_start_is_refused(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with onnxruntime-gpu on a machine without CUDA: onnxruntime itself would go on with the CPU."""
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(runtime.onnxruntime, "get_available_providers", lambda: available)
    monkeypatch.setattr(
        "sptrace.runtime.session._session", lambda path, *_: runtime.onnxruntime.InferenceSession(path)
    )
    with refused("CUDAExecutionProvider did not start"):
        runtime.load(toy.path, providers=["CUDAExecutionProvider"])


def test_a_provider_may_have_options(toy: Any, images: np.ndarray) -> None:
    explainer = runtime.load(toy.path, providers=[("CPUExecutionProvider", {})], threads=1)
    assert explainer.explain(images).target.shape == (3,)


def test_memory_is_laid_out_beforehand_for_gpus_alone(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs need it; on a CPU it costs memory and gains nothing."""
    seen = []
    real = runtime.onnxruntime.InferenceSession

    def session(path: str, options: Any, **_: Any) -> Any:
        seen.append(options.enable_mem_pattern)
        return real(path)

    cuda = "CUDAExecutionProvider"
    monkeypatch.setattr(runtime.onnxruntime, "InferenceSession", session)
    monkeypatch.setattr("sptrace.runtime.session._require_providers", lambda *_: None)
    for providers in (None, [("CPUExecutionProvider", {})], [cuda], [(cuda, {}), "CPUExecutionProvider"]):
        runtime.load(toy.path, providers=providers)
    assert seen == [False, False, True, True]


@pytest.mark.parametrize(
    "provider",
    [
        "CUDAExecutionProvider",
        ("CUDAExecutionProvider", {"enable_cuda_graph": True, "device_id": 1}),
        ("TensorrtExecutionProvider", {"trt_fp16_enable": True, "trt_engine_cache_enable": True}),
    ],
)
def test_gpu_providers(toy: Any, monkeypatch: pytest.MonkeyPatch, provider: Any) -> None:
    """They are not in this onnxruntime, which says what to install; where they are, their options reach it."""
    name = provider if isinstance(provider, str) else provider[0]
    with refused(rf"{name} is not part of .*; pip install onnxruntime-gpu in place of onnxruntime$"):
        runtime.load(toy.path, providers=[provider, "CPUExecutionProvider"])
    session, given = runtime.onnxruntime.InferenceSession(str(toy.path)), []

    def start(path: str, options: Any, *, providers: Any, enable_fallback: int) -> Any:
        given.extend(providers)
        assert not enable_fallback
        return session

    names = [name, "CPUExecutionProvider"]
    monkeypatch.setattr(runtime.onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(runtime.onnxruntime, "InferenceSession", start)
    monkeypatch.setattr(session, "get_providers", lambda: names)
    assert runtime.load(toy.path, providers=[provider, "CPUExecutionProvider"]).providers == tuple(names)
    assert given == [provider, "CPUExecutionProvider"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": 0}, "cannot run on 0 threads: give 1 to"),
        ({"threads": 1.5}, "cannot run on 1.5 threads"),
        ({"threads": "2"}, "cannot run on '2' threads"),
        ({"threads": True}, "cannot run on True threads"),
        ({"batch": 0}, "cannot take 0 images at a time: give 1 or more"),
        ({"batch": 2.0}, "cannot take 2.0 images at a time"),
        ({"batch": 2**70}, r"cannot take 1\.18\S+ images at a time"),
        ({"providers": []}, r"providers must be a list of names, .*, not \[\]"),
        ({"providers": "CPUExecutionProvider"}, "providers must be a list of names"),
        ({"providers": ("CPUExecutionProvider", {})}, "providers must be a list of names"),
        ({"providers": [None]}, "providers must be a list of names"),
        ({"path": None}, "the path of an artifact is a text or a path, not NoneType"),
        ({"path": 3}, "the path of an artifact is a text or a path, not int"),
    ],
    ids=str,
)
def test_what_it_is_loaded_with_is_checked(toy: Any, arguments: dict[str, Any], message: str) -> None:
    with refused(f"^{message}"):
        runtime.load(**{"path": toy.path} | arguments)


def test_numbers_of_numpy_are_numbers(toy: Any) -> None:
    assert runtime.load(toy.path, threads=np.int64(1), batch=np.int32(2)).batch == 2


def test_the_runtime_needs_neither_torch_nor_onnx(toy: Any) -> None:
    code = f"""
import sys
import numpy as np
import sptrace.cli, sptrace.artifact.onnx_file, sptrace.runtime.explainer, sptrace.runtime.photo
import sptrace.runtime.picture
sptrace.load({str(toy.path)!r}).explain(np.zeros((1, 3, 24, 32), np.float32))
assert not {{"torch", "onnx", "onnx_ir"}} & set(sys.modules), "imports the compiler's dependencies"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Artifacts that take photographs ---


@pytest.fixture(scope="module")
def of_photographs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One network twice: taking prepared images, and taking photographs."""
    import torch
    from helpers.small_networks import classifier

    import sptrace

    example = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    folder = tmp_path_factory.mktemp("photographs")
    for name, form in (("prepared", {}), ("taking", {"input": "uint8", "overlay": True})):
        sptrace.compile(classifier(), example, **form).save(folder / f"{name}.onnx")
    return {name: runtime.load(folder / f"{name}.onnx") for name in ("prepared", "taking")}


@pytest.mark.parametrize("size", [(16, 16), (40, 30), (9, 50)])
def test_photographs_are_explained(of_photographs: dict[str, Any], size: tuple[int, int]) -> None:
    taking, prepared = of_photographs["taking"], of_photographs["prepared"]
    assert taking.takes_pictures
    assert not prepared.takes_pictures
    pixels = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    answer = taking.explain(pixels, [1, -1])
    how = prepared.description.preprocessing
    images = np.concatenate([photo.prepare(Image.fromarray(each), how) for each in pixels])
    wanted = prepared.explain(images, [1, -1])
    assert (answer.target == wanted.target).all()
    # Pillow may round one level elsewhere; of pictures of the network's own size it rounds nothing.
    exact = size == (16, 16)
    largest = np.abs(wanted.attribution).max()
    np.testing.assert_allclose(
        answer.attribution, wanted.attribution, rtol=0, atol=largest * (1e-6 if exact else 2e-2)
    )
    assert (answer.overlay.shape, answer.overlay.dtype) == ((2, *size, 3), np.uint8)
    assert wanted.overlay is None


def test_what_is_no_photograph_is_refused(of_photographs: dict[str, Any]) -> None:
    taking = of_photographs["taking"]
    pixels = np.zeros((1, 20, 30, 3), np.uint8)
    for image, message in (
        (pixels / 255, "the image is float64 and the artifact takes photographs, uint8"),
        (pixels[0], r"no batch dimension .*: pass image\[None\]"),
        (pixels.transpose(0, 3, 1, 2), "colours come last"),
        (pixels[:, :0], "colours come last"),
    ):
        with refused(message):
            taking.explain(image)
    with refused("no place can be kept"):
        taking.bind(1)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"classes": 8}, "logits"),
        ({"preprocessing": Preprocessing(size=(32, 24))}, "image"),
        ({"input": "uint8"}, "image"),
        ({"labels": ("espresso",)}, "labels"),
        ({"labels": ()}, "labels"),
        ({"overlay": True}, "overlay"),
        ({"program": "pullback_ascent", "settings": {"steps": "many", "alpha": 20.0}}, "steps"),
        ({"program": "pullback_ascent", "settings": {"layer": 5}}, "layer"),
    ],
)
def test_a_file_that_is_not_what_it_says(toy: Any, change: dict[str, Any], name: str) -> None:
    model = onnx.load(toy.path)
    described = replace(toy.description, **change)
    helper.set_model_props(model, {METADATA_KEY: described.to_json()})
    onnx.save(model, toy.path)
    with pytest.raises(
        SptraceError, match=rf"is not what its description says \({name}\): compile it again$"
    ):
        runtime.load(toy.path)
