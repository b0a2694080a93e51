"""The C++ program, built with the machine's compiler and run with the library of the installed onnxruntime."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch.nn.functional as F
from helpers.class_names import LABELS, RULE
from helpers.consumers import folder, onnxruntime_library, require
from helpers.small_networks import images, small
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor

import sptrace
from sptrace.artifact.description import METADATA_KEY
from sptrace.runtime.photo import read

SOURCE = Path(sptrace.__file__).parent / "deploy" / "cpp"
LIBRARY = onnxruntime_library(Path(onnxruntime.__file__).parent)
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    headers = folder("ORT_ROOT", "onnxruntime's headers")
    require(shutil.which("cmake"), "cmake")
    build = tmp_path_factory.mktemp("build")
    for command in (
        ["cmake", "-S", SOURCE, "-B", build, f"-DORT_ROOT={headers}", "-DCMAKE_CXX_FLAGS=-Werror"],
        ["cmake", "--build", build],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "explain"


@pytest.fixture
def run(program: Path) -> Run:
    """Run the program; `library` may be another than the installed one."""

    def run(*arguments: object, library: Path = LIBRARY) -> subprocess.CompletedProcess[str]:
        command = [program, *map(str, arguments), "--library", library]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def coffee(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from skimage import data

    path = tmp_path_factory.mktemp("photographs") / "coffee.png"
    Image.fromarray(data.coffee()).save(path)
    return path


@pytest.fixture
def mirror(toy: Any, tmp_path: Path) -> Path:
    """An artifact of three scores; see `mirrored`."""
    return mirrored(toy, tmp_path / "mirror.onnx", scores=3)


def mirrored(toy: Any, path: Path, scores: int) -> Path:
    """An artifact whose overlay is the photograph itself, and whose attribution is its pixels."""
    pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    target = helper.make_tensor_value_info("target", TensorProto.INT64, ["N"])
    outputs = [
        helper.make_tensor_value_info("attribution", TensorProto.FLOAT, ["N", 3, "H", "W"]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", scores]),
        helper.make_tensor_value_info("overlay", TensorProto.UINT8, ["N", "H", "W", 3]),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["attribution"], perm=[0, 3, 1, 2]),
        helper.make_node("ReduceMean", ["attribution", "space"], ["means"], keepdims=0),
        helper.make_node("MatMul", ["means", "columns"], ["logits"]),
        helper.make_node("Identity", ["image"], ["overlay"]),
    ]
    space = helper.make_tensor("space", TensorProto.INT64, [2], [2, 3])
    columns = numpy_helper.from_array(np.eye(3, scores, dtype=np.float32), "columns")
    graph = helper.make_graph(nodes, "mirror", [pixels, target], outputs, [space, columns])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    description = replace(toy.description, input="uint8", overlay=True)
    helper.set_model_props(model, {METADATA_KEY: description.to_json()})
    onnx.save(model, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "settings", "target"),
    [
        ("soft_pullback", {}, None),
        ("soft_pullback", {}, "red wine"),
        ("pullback_ascent", {}, None),
        ("pullback_ascent", {"steps": 3, "alpha": 7.5}, "red wine"),
    ],
)
def test_it_gives_what_python_gives(
    kind: str,
    settings: dict[str, float],
    target: str | None,
    lite0: Callable[[str], Path],
    coffee: Path,
    run: Run,
    tmp_path: Path,
) -> None:
    artifact = lite0(kind)
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    options += ["--target", target] if target else []
    attribution, overlay = tmp_path / "why.npy", tmp_path / "why.png"
    done = run(artifact, coffee, *options, "--attribution", attribution, "-o", overlay, "--threads", 2)
    assert (done.returncode, done.stderr) == (0, "")
    expected = sptrace.load(artifact).explain(np.asarray(read(coffee))[None], target, **settings)
    given = np.load(attribution)
    assert given.shape == expected.attribution.shape == (1, 3, 224, 224)
    largest = np.abs(expected.attribution).max()
    assert np.abs(given - expected.attribution).max() <= 1e-5 * largest
    drawn = np.asarray(Image.open(overlay)).astype(int)
    assert expected.overlay is not None
    assert np.abs(drawn - expected.overlay[0]).max() <= 1
    index = int(expected.target[0])
    assert done.stdout.splitlines()[0] == f"{expected.label()} ({index})"
    score, probability = re.search(r"score (\S+), probability (\S+) %", done.stdout).groups()
    assert float(score) == pytest.approx(expected.logits[0, index], abs=1e-3)
    assert float(probability) == pytest.approx(100 * expected.probabilities[0, index], abs=0.1)
    if expected.probabilities_out is not None:
        after = re.search(r"after the ascent (\S+) %", done.stdout).group(1)
        assert float(after) == pytest.approx(100 * expected.probabilities_out[0, index], abs=0.1)


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda x: F.avg_pool2d((x + 1) ** 2, 16).sqrt().flatten(1), "the attribution is NaN or infinite"),
        (lambda x: (-30 * x.mean((2, 3)) * x.new_tensor([1.0, 2.0, 3.0])).softmax(1), "is as good as 1"),
    ],
    ids=["no derivative", "sure"],
)
def test_what_has_no_digits_is_said(
    end: Callable[[Tensor], Tensor], message: str, run: Run, tmp_path: Path
) -> None:
    """Of a black picture, where the network is another than on what it was compiled with."""
    network = small(lambda self, x: end(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sptrace.SptraceWarning)
        program = sptrace.compile(network, images(1), program="gradient", input="uint8", keep_link=True)
    program.save(tmp_path / "network.onnx")
    Image.new("RGB", (16, 16)).save(tmp_path / "black.png")
    done = run(tmp_path / "network.onnx", tmp_path / "black.png")
    assert done.returncode == 0
    assert done.stderr.startswith("warning: ")
    assert message in done.stderr


@pytest.mark.slow
def test_memory_stays_as_it_is(lite0: Callable[[str], Path], coffee: Path, run: Run) -> None:
    done = run(lite0("soft_pullback"), coffee, "--repeat", 100)
    assert done.returncode == 0, done.stderr
    before, after = re.search(r"memory (\S+) MB after 11, (\S+) MB after all", done.stdout).groups()
    assert float(before) > 20
    assert float(after) - float(before) < 4  # one attribution has 0.6 MB, one overlay 0.7 MB


@pytest.mark.slow
def test_the_oldest_onnxruntime(lite0: Callable[[str], Path], coffee: Path, run: Run, tmp_path: Path) -> None:
    oldest = folder("ORT_OLDEST", "an onnxruntime 1.21")
    artifact, attribution = lite0("soft_pullback"), tmp_path / "why.npy"
    library = onnxruntime_library(oldest / "onnxruntime")
    assert library.name.startswith("libonnxruntime.so.1.21.")
    done = run(artifact, coffee, "--attribution", attribution, library=library)
    assert (done.returncode, done.stderr) == (0, "")
    expected = sptrace.load(artifact).attribute(np.asarray(read(coffee))[None])
    assert np.abs(np.load(attribution) - expected).max() <= 1e-5 * np.abs(expected).max()


def photograph(mode: str) -> Image.Image:
    """A small picture with structure in all channels, wide enough for every PNG filter to be chosen."""
    rng = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 41 * 37 * 4).reshape(37, 41, 4)
    pixels = np.clip(smooth + rng.normal(0, 9, smooth.shape), 0, 255).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + pixels[..., 1])
    if mode in ("P", "P transparent"):
        return picture.convert("RGB").quantize(200 if mode == "P" else 13)
    return picture.convert(mode)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P transparent", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_png_files_are_read_as_python_reads_them(
    mode: str, level: int, mirror: Path, run: Run, tmp_path: Path
) -> None:
    path, overlay = tmp_path / "photo.png", tmp_path / "read.png"
    more = {"transparency": bytes(range(0, 130, 10))} if mode == "P transparent" else {}
    photograph(mode).save(path, compress_level=level, **more)
    done = run(mirror, path, "-o", overlay)
    assert (done.returncode, done.stderr) == (0, "")
    expected = np.asarray(read(path)).astype(int)
    # Pillow composes transparent pixels in its own fixed-point arithmetic.
    tolerance = 1 if mode in ("LA", "RGBA", "P transparent") else 0
    assert np.abs(np.asarray(Image.open(overlay)).astype(int) - expected).max() <= tolerance


def test_fixed_huffman_codes(mirror: Path, run: Run, tmp_path: Path) -> None:
    """What zlib writes with Z_FIXED; Pillow never does."""
    import struct
    import zlib

    pixels = np.asarray(photograph("RGB"))
    packer = zlib.compressobj(9, zlib.DEFLATED, 15, 8, zlib.Z_FIXED)
    packed = packer.compress(b"".join(b"\0" + row.tobytes() for row in pixels)) + packer.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", packed), chunk(b"IEND", b""))
    path, overlay = tmp_path / "photo.png", tmp_path / "read.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert run(mirror, path, "-o", overlay).returncode == 0
    assert np.array_equal(np.asarray(Image.open(overlay)), pixels)


@pytest.mark.parametrize("suffix", ["ppm", "png"])
def test_ppm_in_and_both_formats_out(suffix: str, mirror: Path, run: Run, tmp_path: Path) -> None:
    path, overlay = tmp_path / "photo.ppm", tmp_path / f"read.{suffix}"
    photograph("RGB").save(path)
    assert run(mirror, path, "-o", overlay).returncode == 0
    assert np.array_equal(np.asarray(Image.open(overlay)), np.asarray(photograph("RGB")))


def test_a_large_overlay(mirror: Path, run: Run, tmp_path: Path) -> None:
    """More than one block of 65535 bytes."""
    path, overlay = tmp_path / "photo.ppm", tmp_path / "read.png"
    photograph("RGB").resize((300, 200)).save(path)
    assert run(mirror, path, "-o", overlay).returncode == 0
    assert np.array_equal(np.asarray(Image.open(overlay)), np.asarray(Image.open(path)))


@pytest.mark.parametrize(
    ("given", "expected"), [("Cardigan, Cardigan Welsh corgi", 4), ("tinca tinca", 0), ("1", 1)]
)
def test_classes_have_names(given: str, expected: int, mirror: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    done = run(mirror, path, "--target", given)
    if expected > 2:  # the mirror has three scores
        assert done.stderr == f"error: there is no class {expected}: give 0 to 2\n"
    else:
        assert f"({expected})" in done.stdout.splitlines()[0]


LOGITS = {"softmax": [20.0, 0.5, 1.5], "sigmoid": [-3.0, 40.0, 0.25], "identity": [0.75, 0.2, 0.05]}


@pytest.mark.parametrize(
    ("link", "labels", "logits"),
    [
        *((link, None, logits) for link, logits in LOGITS.items()),
        ("none", None, [-3.25, 2.5]),
        ("none", None, [7.125]),
        *(
            (link, ("no", "yes"), [logit])
            for link, logit in (("sigmoid", -1.5), ("sigmoid", 20.0), ("identity", 0.25))
        ),
        (None, None, LOGITS["softmax"]),
    ],
)
def test_what_is_shown_of_outputs(
    link: str | None, labels: tuple[str, ...] | None, logits: list[float], toy: Any, run: Run, tmp_path: Path
) -> None:
    """By its link, every class has the probability that Python says; older artifacts say none."""
    classes = len(labels or logits)
    description = replace(
        toy.description, input="uint8", labels=labels, classes=classes, link=link or "softmax"
    ).as_dict()
    if link is None:
        del description["link"]
    path, picture = tmp_path / "constant.onnx", tmp_path / "photo.ppm"
    onnx.save(constant(logits, json.dumps(description)), path)
    photograph("RGB").save(picture)
    explainer = sptrace.load(path)
    for target in [None, *range(classes)]:
        expected = explainer.explain(np.asarray(read(picture))[None], target)
        (index,) = expected.target
        lines = run(path, picture, *([] if target is None else ["--target", target])).stdout.splitlines()
        assert lines[0] == f"{expected.label()} ({index})"
        if expected.probabilities is None:
            assert lines[1] == f"value {expected.scores[0, index]:.4f}"
        else:
            share = 100 * expected.probabilities[0, index]
            assert lines[1] == f"score {expected.scores[0, index]:.4f}, probability {share:.1f} %"


def constant(logits: list[float], description: str) -> onnx.ModelProto:
    """An artifact that always answers the same logits."""
    pixels = helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", "H", "W", 3])
    target = helper.make_tensor_value_info("target", TensorProto.INT64, ["N"])
    outputs = [
        helper.make_tensor_value_info("attribution", TensorProto.FLOAT, ["N", "H", "W", 3]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(logits)]),
    ]
    numbers = helper.make_tensor("numbers", TensorProto.FLOAT, [1, len(logits)], logits)
    nodes = [
        helper.make_node("Cast", ["image"], ["attribution"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["numbers"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "constant", [pixels, target], outputs, [numbers])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: description})
    return model


@pytest.mark.parametrize(("text", "wanted"), RULE)
def test_the_rule_for_targets(text: str, wanted: int | str, make_toy: Any, run: Run, tmp_path: Path) -> None:
    """As in Python: digits are an index, other texts names."""
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    artifact = mirrored(make_toy(labels=LABELS), tmp_path / "mirror.onnx", scores=len(LABELS))
    done = run(artifact, path, "--target", text)
    if isinstance(wanted, int):
        assert done.returncode == 0, done.stderr
        assert wanted < 0 or f"({wanted})" in done.stdout.splitlines()[0]
    else:
        assert wanted in done.stderr


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--target", "crane"], "is the name of several classes: give one of the numbers 2, 3"),
        (["--target", "unicorn"], "no class is called 'unicorn': give its number"),
        (["--target", "7"], "there is no class 7: give 0 to 2"),
        (["--set", "steps=3"], "this artifact has no setting 'steps'"),
        (["--set", "steps"], "write NAME=NUMBER"),
        (["--threads", "0"], "--threads takes a whole number from 1 on"),
        (["--provider", "MoonExecutionProvider"], "this onnxruntime has no MoonExecutionProvider: it has "),
        (["-o", "why.jpg"], "cannot write why.jpg: end it in .png or .ppm"),
        (["--colour", "red"], "there is no option --colour"),
        (["another"], "give an artifact and a picture"),
        (["-o", "/nowhere/why.png"], "cannot write /nowhere/why.png: No such file or directory"),
    ],
)
def test_mistakes_are_one_line(
    options: list[str], error: str, mirror: Path, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    done = run(mirror, path, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(item.name for item in tmp_path.iterdir()) == ["mirror.onnx", "photo.ppm", "toy.onnx"]


def test_damaged_pictures(mirror: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photograph("RGB").save(path)
    whole = path.read_bytes()
    for keep in range(1, len(whole) - 12, 97):
        path.write_bytes(whole[:keep])
        done = run(mirror, path)
        assert (done.returncode, done.stderr[:7]) == (2, "error: ")
    path.write_bytes(b"GIF89a")
    assert "is neither PNG nor binary PPM" in run(mirror, path).stderr


def test_artifacts_that_do_not_fit(toy: Any, mirror: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    assert "takes prepared images: compile with --input uint8" in run(toy.path, path).stderr
    assert "there is no file nothing.onnx" in run("nothing.onnx", path).stderr
    model = onnx.load(mirror)
    helper.set_model_props(model, {})
    del model.metadata_props[:]
    onnx.save(model, mirror)
    assert "was not written by sptrace" in run(mirror, path).stderr


def described(model: Path, text: str) -> None:
    """Give an artifact another description."""
    loaded = onnx.load(model)
    helper.set_model_props(loaded, {METADATA_KEY: text})
    onnx.save(loaded, model)


def test_a_description_that_is_nested_without_end(mirror: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    for opening in ("[", '{"a":'):
        described(mirror, '{"input": "uint8", "labels": ' + opening * 1_000_000)
        done = run(mirror, path)
        assert done.returncode == 2
        assert done.stderr == "error: the artifact's description is damaged: compile it again\n"


def test_names_for_fewer_classes_than_there_are(mirror: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    described(mirror, '{"input": "uint8", "labels": ["red"]}')
    assert run(mirror, path, "--target", "2").stdout.startswith("class 2 (2)")


def test_outputs_of_other_types_and_sizes(mirror: Path, run: Run, tmp_path: Path) -> None:
    """What memory is read by is what onnxruntime says, not what the description does."""
    path = tmp_path / "photo.ppm"
    photograph("RGB").save(path)
    for name, kind in (("attribution", TensorProto.DOUBLE), ("overlay", TensorProto.FLOAT)):
        model = onnx.load(mirror)
        (output,) = (output for output in model.graph.output if output.name == name)
        output.type.tensor_type.elem_type = kind
        (node,) = (node for node in model.graph.node if node.output[0] == name)
        node.output[0] = "other"
        model.graph.node.append(helper.make_node("Cast", ["other"], [name], to=kind))
        for reader in model.graph.node:
            reader.input[:] = [
                "other" if given == name and reader.output[0] != name else given for given in reader.input
            ]
        onnx.save(model, tmp_path / "other.onnx")
        assert "has other outputs than sptrace writes" in run(tmp_path / "other.onnx", path).stderr


def test_a_library_that_is_missing_or_too_old(mirror: Path, run: Run, tmp_path: Path) -> None:
    path, source, library = tmp_path / "photo.ppm", tmp_path / "old.cpp", tmp_path / "old.so"
    photograph("RGB").save(path)
    missing = run(mirror, path, library=tmp_path / "missing.so").stderr
    assert "cannot open onnxruntime's library" in missing
    assert "--library" in missing
    source.write_text(
        "struct Base { const void* (*get)(unsigned); const char* (*version)(); };\n"
        "static const void* get(unsigned) { return nullptr; }\n"
        'static const char* version() { return "1.10.0"; }\n'
        "static Base base{get, version};\n"
        'extern "C" Base* OrtGetApiBase() { return &base; }\n'
    )
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    assert re.search(
        r"is onnxruntime 1\.10\.0: this program needs 1\.\d+ or later",
        run(mirror, path, library=library).stderr,
    )
    source.write_text("int nothing;")
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", library], check=True)
    assert "is not onnxruntime" in run(mirror, path, library=library).stderr
