from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers.small_networks import Small, classifier, images, small
from torch import Tensor, fx, nn

import sptrace
from sptrace import installing
from sptrace.artifact.description import METADATA_KEY, Description, GateCount, Preprocessing
from sptrace.artifact.softening import MEASURED
from sptrace.compiler.compile import example_image
from sptrace.compiler.graph.builder import placeholder, shape, value
from sptrace.compiler.graph.sizes import BATCH
from sptrace.errors import SptraceError, SptraceWarning, UnsupportedError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABELS = ("one", "two", "three", "four", "five", "six", "seven")


@pytest.fixture(scope="module")
def program() -> sptrace.Program:
    return sptrace.compile(classifier(), images(1), mean=MEAN, std=STD, labels=LABELS)


def run(program: sptrace.Program, image: Tensor, target: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """The ONNX program in onnxruntime."""
    session = onnxruntime.InferenceSession(program.onnx_model, providers=["CPUExecutionProvider"])
    attribution, logits = session.run(
        ["attribution", "logits"], {"image": image.numpy(), "target": np.array(target)}
    )
    return attribution, logits


def close(given: Any, wanted: Any, share: float = 1e-5) -> bool:
    """Equal to a share of the largest value."""
    given, wanted = np.asarray(given), np.asarray(wanted)
    assert given.shape == wanted.shape
    return bool(np.abs(given - wanted).max() <= share * np.abs(wanted).max())


# --- The two forms of a program ---


def test_the_interface_of_the_module(program: sptrace.Program) -> None:
    assert isinstance(program.module, fx.GraphModule)
    graph = program.module.graph
    assert [node.name for node in graph.nodes if node.op == "placeholder"] == ["image", "target"]
    image, target = placeholder(graph, "image"), placeholder(graph, "target")
    assert (shape(image), value(image).dtype) == ([BATCH, 3, 16, 16], torch.float32)
    assert (shape(target), value(target).dtype) == ([BATCH], torch.int64)
    attribution, logits = graph.output_node().args[0]
    assert (shape(attribution), shape(logits)) == ([BATCH, 3, 16, 16], [BATCH, 7])


def test_the_interface_of_the_file(program: sptrace.Program) -> None:
    model = onnx.load_from_string(program.onnx_model)
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    described = [
        (each.name, each.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in dims])
        for each in [*model.graph.input, *model.graph.output]
        for dims in [each.type.tensor_type.shape.dim]
    ]
    assert described == [
        ("image", float32, ["N", 3, 16, 16]),
        ("target", int64, ["N"]),
        ("attribution", float32, ["N", 3, 16, 16]),
        ("logits", float32, ["N", 7]),
    ]
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]
    assert model.ir_version == 10


@pytest.mark.parametrize("name", ["soft_pullback", "gradient"])
def test_both_forms_give_the_same(name: str) -> None:
    program = sptrace.compile(classifier(), images(1), program=name, mean=MEAN, std=STD)
    for count in (1, 2, 5):
        image, target = images(count, seed=3), list(range(count))
        attribution, logits = run(program, image, target)
        with torch.no_grad():
            module_attribution, module_logits = program.module(image, torch.tensor(target))
        assert close(attribution, module_attribution)
        assert close(logits, module_logits)


def test_samples_of_a_batch_do_not_meet(program: sptrace.Program) -> None:
    image = images(5, seed=3)
    attribution, logits = run(program, image, [0, 1, 2, 3, -1])
    for index, target in enumerate([0, 1, 2, 3, -1]):
        alone, alone_logits = run(program, image[index : index + 1], [target])
        assert close(attribution[index : index + 1], alone)
        assert close(logits[index : index + 1], alone_logits)


def test_minus_one_is_the_predicted_class(program: sptrace.Program) -> None:
    image = images(5, seed=3)
    free, logits = run(program, image, [-1] * 5)
    predicted = logits.argmax(axis=1).tolist()
    np.testing.assert_array_equal(run(program, image, predicted)[0], free)
    others = [(index + 1) % 7 for index in predicted]
    assert not close(run(program, image, others)[0], free, share=0.1)


def test_every_class_can_be_explained(program: sptrace.Program) -> None:
    attribution, _ = run(program, images(1).expand(7, -1, -1, -1), list(range(7)))
    assert len({sample.tobytes() for sample in attribution}) == 7


# --- What is computed ---


@pytest.mark.parametrize(
    ("mean", "std", "input_range"),
    [(None, None, (-1.0, 1.0)), (MEAN, STD, (-1.0, 1.0)), (MEAN, STD, (0.0, 1.0)), (MEAN, STD, (0, 255))],
)
def test_attributions_live_in_pixel_space(mean: Any, std: Any, input_range: tuple[float, float]) -> None:
    """The gradient by hand through (image - low) / (high - low), minus mean, divided by std."""
    low, high = input_range
    image = (low + (high - low) * (images(2, seed=3) + 1) / 2).float()
    network = classifier()
    program = sptrace.compile(
        network, image[:1], program="gradient", mean=mean, std=std, input_range=input_range
    )

    leaf = image.double().requires_grad_()
    pixels = leaf
    if mean is not None:
        pixels = (leaf - low) / (high - low)
        pixels = torch.stack([(pixels[:, channel] - mean[channel]) / std[channel] for channel in range(3)], 1)
    logits = network.double()(pixels)
    (gradient,) = torch.autograd.grad(logits[0, 4] + logits[1, 2], leaf)

    attribution, given = run(program, image, [4, 2])
    assert close(given, logits.detach())
    assert close(attribution, gradient, share=1e-4)
    preprocessing = program.description.preprocessing
    assert (preprocessing.mean, preprocessing.std) == (mean, std)
    assert preprocessing.input_range == input_range


def test_the_soft_pullback_of_one_relu() -> None:
    """By hand: logits = A relu(B x), pullback = B^T (Phi(B x / tau) * A[target])."""
    first, last = nn.Linear(3 * 64, 10, bias=False), nn.Linear(10, 4, bias=False)
    network = small(
        lambda self, x: self.last(torch.relu(self.first(x.flatten(1)))), first=first, last=last
    ).requires_grad_(False)
    image = images(3, size=8, seed=5)
    program = sptrace.compile(
        network, image[:1], softening=sptrace.Softening("paper", tau={"relu": 0.35}), input_range=(-1, 1)
    )
    target = [0, 3, 1]
    z = image.double().flatten(1) @ first.weight.double().T
    gate = torch.distributions.Normal(0, 1).cdf(z / 0.35)
    wanted = (gate * last.weight.double()[target]) @ first.weight.double()
    assert close(run(program, image, target)[0].reshape(3, -1), wanted)


def test_the_softening_is_honoured() -> None:
    network, image = classifier(), images(2)
    soft, hard, mixed = (
        run(sptrace.compile(network, image, softening=softening), image, [0, 1])[0]
        for softening in ("paper", "hard", sptrace.Softening("hard", rule={"relu": "phi"}))
    )
    gradient = run(sptrace.compile(network, image, program="gradient"), image, [0, 1])[0]
    np.testing.assert_array_equal(hard, gradient)
    assert not close(soft, hard, share=0.01)
    assert not close(mixed, hard, share=0.01)
    assert not close(mixed, soft, share=0.01)


# --- Saving ---


def test_what_is_saved_is_what_load_reads(program: sptrace.Program, tmp_path: Path) -> None:
    program.save(tmp_path / "explainer.onnx")
    assert (tmp_path / "explainer.onnx").read_bytes() == program.onnx_model
    explainer = sptrace.load(tmp_path / "explainer.onnx")
    assert explainer.description == program.description
    assert explainer.labels == LABELS
    image = images(2, seed=3)
    result = explainer.explain(image.numpy(), "three")
    np.testing.assert_array_equal(result.attribution, run(program, image, [2, 2])[0])
    np.testing.assert_array_equal(result.logits, run(program, image, [2, 2])[1])
    assert result.label(1) == "three"


def test_it_cannot_be_saved_just_anywhere(program: sptrace.Program, tmp_path: Path) -> None:
    with pytest.raises(SptraceError, match=r"^cannot write .*does not exist"):
        program.save(tmp_path / "nowhere" / "explainer.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_description(program: sptrace.Program) -> None:
    description = program.description
    assert description.program == "soft_pullback"
    assert description.network == "Small"
    assert description.classes == 7
    assert description.parameters == sum(weight.numel() for weight in classifier().parameters())
    assert description.preprocessing == Preprocessing(size=(16, 16), mean=MEAN, std=STD)
    assert description.softening == sptrace.Softening("relative")
    assert description.gates == (
        GateCount("max_pool", "softmax", str(MEASURED), 1),
        GateCount("relu", "phi", str(MEASURED), 2),
        GateCount("relu6", "relu", str(MEASURED), 1),
    )
    assert description.version == sptrace.__version__
    assert description.labels == LABELS
    verification = description.verification
    assert verification is not None
    assert [batch.batch for batch in verification.batches] == [1, 2]
    model = onnx.load_from_string(program.onnx_model)
    [entry] = [entry for entry in model.metadata_props if entry.key == METADATA_KEY]
    assert Description.from_json(entry.value) == description


def test_twice_the_same_bytes(program: sptrace.Program) -> None:
    again = sptrace.compile(classifier(), images(1), mean=MEAN, std=STD, labels=LABELS)
    assert again.onnx_model == program.onnx_model


def test_one_copy_of_the_weights() -> None:
    """Also of weights that two modules share."""
    conv = nn.Conv2d(3, 64, 3, bias=False)
    first, second = nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.Conv2d(64, 64, 3, padding=1, bias=False)
    second.weight = first.weight
    network = small(
        lambda self, x: self.second(torch.relu(self.first(torch.relu(self.conv(x))))).mean((2, 3)),
        conv=conv,
        first=first,
        second=second,
    )
    weights = 4 * sum(weight.numel() for weight in network.parameters())
    program = sptrace.compile(network, images(1))
    initializers = onnx.load_from_string(program.onnx_model).graph.initializer
    assert sum(len(tensor.raw_data) for tensor in initializers) <= 1.01 * weights


def test_nodes_are_named_after_modules(program: sptrace.Program) -> None:
    names = [node.name for node in onnx.load_from_string(program.onnx_model).graph.node]
    assert len(set(names)) == len(names)
    assert "stem.0/Conv" in names
    assert any(name.startswith("stem.2/pullback/") for name in names)
    assert any(name.startswith("pool/pullback/") for name in names)


# --- The network is left alone ---


@pytest.mark.parametrize("grad", [True, False])
def test_the_network_is_not_changed(grad: bool) -> None:
    network = classifier().requires_grad_(grad)
    before = copy.deepcopy(network.state_dict())
    image = images(2)
    sptrace.compile(network, image, mean=MEAN, std=STD)
    assert torch.equal(image, images(2))
    assert image.grad is None
    assert not image.requires_grad
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for module in network.modules():
        assert not module.training
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    for weight in network.parameters():
        assert weight.requires_grad is grad
        assert weight.grad is None


def test_a_network_that_writes_over_its_input() -> None:
    network = small(lambda self, x: self.conv(x.mul_(2)).relu_(), conv=nn.Conv2d(3, 2, 3))
    image = images(2)
    program = sptrace.compile(network, image)
    assert torch.equal(image, images(2))
    program.module(image, torch.tensor([0, 1]))
    assert torch.equal(image, images(2))


# --- Under whatever circumstances ---


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_within_any_gradient_mode(mode: Callable[[], Any], program: sptrace.Program) -> None:
    network = classifier()
    with mode():
        again = sptrace.compile(network, images(1), mean=MEAN, std=STD, labels=LABELS)
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
    assert again.onnx_model == program.onnx_model


@pytest.mark.parametrize(
    "prepare",
    [
        lambda image: image.requires_grad_(),
        lambda image: nn.Parameter(image),
        lambda image: image.to(memory_format=torch.channels_last),
        lambda image: image.expand(3, -1, -1, -1),
    ],
)
def test_with_any_kind_of_example(prepare: Callable[[Tensor], Tensor], program: sptrace.Program) -> None:
    again = sptrace.compile(classifier(), prepare(images(1)), mean=MEAN, std=STD)
    assert close(run(again, images(2), [1, 2])[0], run(program, images(2), [1, 2])[0], share=1e-6)


def test_with_another_default_dtype(program: sptrace.Program) -> None:
    network = classifier()
    torch.set_default_dtype(torch.float64)
    try:
        again = sptrace.compile(network, images(1), mean=MEAN, std=STD, labels=LABELS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert again.onnx_model == program.onnx_model


def test_oblong_pictures() -> None:
    image = images(2, 24)[:, :, :16]
    program = sptrace.compile(classifier(), image[:1])
    assert program.description.preprocessing.size == (16, 24)
    assert run(program, image, [0, 1])[0].shape == (2, 3, 16, 24)


def test_stages_are_reported() -> None:
    stages: list[str] = []
    sptrace.compile(classifier(), images(1), progress=stages.append)
    assert len(stages) >= 4
    assert all(stage and "\n" not in stage for stage in stages)


# --- Mistakes ---


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_weights_that_no_network_computes_with(broken: float) -> None:
    network = classifier()
    name, parameter = list(network.named_parameters())[-1]
    with torch.no_grad():
        parameter.view(-1)[0] = broken
    with pytest.raises(SptraceError, match=f"^the parameter {name} holds NaN or infinite values"):
        sptrace.compile(network, images(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"program": "saliency"}, "there is no program 'saliency'"),
        ({"program": None}, "there is no program None"),
        ({"program": ["gradient"]}, r"there is no program \['gradient'\]"),
        ({"progress": None}, "progress must be a function of one text, the stage, and fails: TypeError"),
        (
            {"progress": lambda: None},
            "progress must be a function of one text, the stage, and fails: TypeError",
        ),
        ({"link": ""}, "there is no link ''"),
        ({"link": []}, r"there is no link \[\]"),
        ({"keep_link": "no"}, "keep_link must be True or False, not 'no'"),
        ({"input": "uint8", "overlay": "no"}, "overlay must be True or False, not 'no'"),
        ({"softening": "gentle"}, "there is no softening preset 'gentle'"),
        ({"softening": 0.6}, "softening must be the name of a preset or a Softening, not float"),
        ({"mean": MEAN}, "mean and std belong together: give both or neither"),
        ({"std": STD}, "mean and std belong together: give both or neither"),
        ({"mean": (0.5, 0.5), "std": STD}, r"mean must be three numbers, not \(0.5, 0.5\)"),
        ({"mean": 0.5, "std": STD}, "mean must be three numbers, not 0.5"),
        ({"mean": "abc", "std": STD}, "mean must be three numbers, not 'abc'"),
        ({"mean": (0.5, 0.5, float("nan")), "std": STD}, "mean must be three numbers"),
        ({"mean": {0.4, 0.5, 0.6}, "std": STD}, "mean must be three numbers, not {"),
        ({"mean": b"abc", "std": STD}, "mean must be three numbers, not b'abc'"),
        ({"mean": (1e31,) * 3, "std": STD}, "mean must be three numbers"),
        ({"mean": (True,) * 3, "std": STD}, "mean must be three numbers"),
        (
            {"mean": MEAN, "std": (1e-300,) * 3},
            r"std must be three numbers above 0, at least 1e-06, not \(1e-300",
        ),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "std must be three numbers above 0"),
        ({"mean": MEAN, "std": (0.2, -0.1, 0.2)}, "std must be three numbers above 0"),
        ({"mean": MEAN, "std": (0.2, 0.1, float("inf"))}, "std must be three numbers above 0"),
        ({"input_range": (1, -1)}, r"input_range must be two numbers, .*, not \(1, -1\)"),
        ({"input_range": (0, 0)}, "input_range must be two numbers"),
        ({"input_range": (0, float("inf"))}, "input_range must be two numbers"),
        ({"input_range": (0, 0.5, 1)}, "input_range must be two numbers"),
        ({"input_range": 255}, "input_range must be two numbers"),
        ({"input_range": "01"}, "input_range must be two numbers, .*, not '01'"),
        ({"input_range": (-1e38, 1e38)}, "input_range must be two numbers"),
        ({"labels": 7}, "labels must be a list of texts"),
        ({"labels": set(LABELS)}, "labels must be a list of texts"),
        ({"labels": LABELS[:-1]}, "6 labels for 7 classes: give one name per class"),
        ({"labels": "abcdefg"}, "labels must be a list of texts"),
        ({"labels": list(range(7))}, "labels must be a list of texts"),
        ({"labels": []}, "labels must be a list of texts"),
        ({"labels": {1: "a", 2: "b"}}, "labels must be a list of texts"),
        ({"labels": dict(enumerate(LABELS[:-1]))}, "6 labels for 7 classes"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SptraceError, match=f"^{message}") as error:
        sptrace.compile(classifier(), images(1), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("network", "example", "message"),
    [
        (classifier().train(), images(1), "the network is in train mode"),
        (classifier().half(), images(1), "the network's 'stem.0.weight' is torch.float16"),
        ("resnet18", images(1), "the network must be a torch.nn.Module, not str"),
        (classifier(), images(1).double(), "the example must be a float32 tensor"),
        (classifier(), images(1).to_sparse(), "the example must be a float32 tensor .*, not a sparse one"),
        (classifier(), images(1)[:, :1], r"the example must have 3 channels, \[N, 3, H, W\], not \[1, 1,"),
        (small(lambda self, x: torch.lgamma(x)), images(1), "aten.lgamma.default has no pullback"),
        (
            small(lambda self, x: self.bias.expand(x.shape[0], 5), bias=torch.ones(5)),
            images(1),
            "the network's out",
        ),
    ],
)
def test_wrong_networks_and_examples(network: Any, example: Tensor, message: str) -> None:
    with pytest.raises(SptraceError, match=f"^{message}") as error:
        sptrace.compile(network, example)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("example", "arguments", "values"),
    [
        (1024 * images(2), {}, r"the example has values from -\S+ to \S+, outside of input_range, -1 to 1"),
        (127.5 * (images(2) + 1), {"mean": MEAN, "std": STD}, r"the example has values from .*, -1 to 1"),
        (images(2), {"input_range": (0, 1)}, r"the example has values from -\S+ to \S+, .*, 0 to 1"),
        (torch.cat([images(1), 1.01 * images(1).sign()]), {}, "the example has values from -1.01 to 1.01"),
        (
            images(2),
            {"calibration": 2 * images(3).sign()},
            "the calibration pictures have values from -2 to 2",
        ),
    ],
)
def test_pictures_of_another_scale(example: Tensor, arguments: dict[str, Any], values: str) -> None:
    with pytest.raises(
        SptraceError, match=rf"^{values}.*: scale pictures so, or give input_range=\(low, high\)"
    ) as error:
        sptrace.compile(classifier(), example, **arguments)
    assert "\n" not in str(error.value)


def test_a_mean_that_no_pixel_has() -> None:
    """Given for pixels of 0 to 255, as some libraries write it."""
    mean, std = ([255 * number for number in numbers] for numbers in (MEAN, STD))
    with pytest.warns(SptraceWarning, match=r"^mean is \(123\.\S+, .* divide mean and std by 255$"):
        sptrace.compile(classifier(), images(1), mean=mean, std=std)


def test_rounding_is_no_other_scale() -> None:
    """Interpolated or half-precision pictures leave the range by a thousandth at most."""
    assert sptrace.compile(classifier(), 1.0015 * images(1).sign()).description.classes == 7


def test_an_op_without_a_rule_is_named_with_its_place() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.lgamma(x)  # the op

    network = Small(lambda self, x: self.inner(x), inner=Inner()).eval()
    with pytest.raises(UnsupportedError, match=r"aten\.lgamma\.default has no pullback") as error:
        sptrace.compile(network, images(1))
    with open(__file__, encoding="utf-8") as file:
        line = next(number for number, text in enumerate(file, 1) if "# the op" in text)
    assert "module inner" in str(error.value)
    assert f"{__file__}:{line}:" in str(error.value)


# --- Without torch ---


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_importing_and_loading_does_not_import_torch(program: sptrace.Program, tmp_path: Path) -> None:
    program.save(tmp_path / "explainer.onnx")
    np.save(tmp_path / "image.npy", images(1).numpy())
    done = python(
        "import sys, numpy, sptrace\n"
        f"explainer = sptrace.load({str(tmp_path / 'explainer.onnx')!r})\n"
        f"result = explainer.explain(numpy.load({str(tmp_path / 'image.npy')!r}))\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'onnx', 'onnx_ir'}))\n"
        "print(int(result.target[0]))\n"
    )
    predicted = run(program, images(1), [-1])[1].argmax()
    assert done.stdout.split("\n")[:2] == ["[]", str(predicted)], done.stderr


@pytest.mark.parametrize("missing", ["torch", "onnx", "onnx_ir"])
def test_compiling_without_what_it_needs_says_what_to_install(missing: str) -> None:
    done = python(
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import sptrace\n"
        "try: sptrace.compile\n"
        "except sptrace.SptraceError as error: print(error)\n"
    )
    assert done.stdout == f"compiling needs {missing}: {installing.command('compile')}\n", done.stderr


# --- The picture to verify on ---


@pytest.mark.parametrize("input_range", [(-1.0, 1.0), (0.0, 255.0)])
def test_the_example_image(input_range: tuple[float, float]) -> None:
    preprocessing = Preprocessing(size=(20, 30), input_range=input_range)
    image = example_image(preprocessing)
    assert image.shape == (1, 3, 20, 30)
    assert image.dtype == torch.float32
    assert torch.equal(image, example_image(preprocessing))
    low, high = input_range
    assert low <= image.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < image.max() <= high


# --- Photographs as input ---


def test_an_artifact_that_takes_photographs_says_so() -> None:
    program = sptrace.compile(classifier(), images(1), input="uint8", overlay=True, mean=MEAN, std=STD)
    description = program.description
    assert (description.input, description.overlay) == ("uint8", True)
    assert 0 <= description.verification.pixels <= 1.001
    model = onnx.load_from_string(program.onnx_model)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [each.name for each in model.graph.output] == ["attribution", "logits", "overlay"]
    assert Description.from_json(description.to_json()) == description


@pytest.mark.parametrize("name", ["pullback_ascent", "smooth_pullback", "fusion_pullback", "guided_gradcam"])
def test_every_kind_of_program_takes_photographs(name: str) -> None:
    """Loops read the picture from the graph around them."""
    program = sptrace.compile(classifier(), images(1), program=name, input="uint8", overlay=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 30, 40, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(program.onnx_model, providers=["CPUExecutionProvider"])
    answers = session.run(["attribution", "overlay"], {"image": pixels, "target": np.array([1, -1])})
    assert [each.shape for each in answers] == [(2, 3, 16, 16), (2, 30, 40, 3)]


def test_unknown_forms_of_input_are_refused() -> None:
    with pytest.raises(SptraceError, match="there is no input 'uint16': use float32 or uint8"):
        sptrace.compile(classifier(), images(1), input="uint16")
    with pytest.raises(SptraceError, match="an overlay lies over the photograph: compile with input uint8"):
        sptrace.compile(classifier(), images(1), overlay=True)


def test_a_maximum_is_measured_like_a_hard_gate() -> None:
    """Which of two numbers is the larger float32 may not be able to tell; what follows from that is no error."""
    soft = sptrace.compile(classifier(), images(1)).description.verification
    maximum = small(lambda self, x: self.head(x.flatten(2).amax(-1)), head=nn.Linear(3, 7))
    hard = sptrace.Softening(rule={"max_pool": "hard"})
    verification = sptrace.compile(maximum, images(1), softening=hard).description.verification
    assert (soft.measure, verification.measure) == ("maximum", "norm")
