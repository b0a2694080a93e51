"""A wrong program must not get through; all by way of `sptrace.compile`, with one of its stages broken."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torchvision
from helpers.small_networks import classifier, images, small
from onnx import numpy_helper
from torch import Tensor, fx

import sptrace
from sptrace.artifact import description
from sptrace.artifact.description import Verification
from sptrace.compiler import compile as compiler
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.pullback import TABLE
from sptrace.compiler.verification import bounds
from sptrace.errors import VerificationError

TOLERANCE, SPREAD = 1e-4, 4.0
Corrupt = Callable[[onnx.ModelProto], None]
CAPTURED: list[fx.GraphModule] = []


@pytest.fixture
def emit_corrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Corrupt], None]:
    """Let the emitter write a file in which something is wrong."""

    def install(corrupt: Corrupt) -> None:
        def emit(*arguments: Any) -> ir.Model:
            proto = ir.to_proto(right(*arguments))
            corrupt(proto)
            return ir.from_proto(proto)

        right = compiler.emit
        monkeypatch.setattr(compiler, "emit", emit)

    return install


@pytest.fixture
def assemble_corrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[fx.GraphModule], None]], None]:
    """Let the torch.fx program be wrong, and the file with it."""

    def install(corrupt: Callable[[fx.GraphModule], None]) -> None:
        def assemble(*arguments: Any, **keywords: Any) -> Any:
            assembled = right(*arguments, **keywords)
            corrupt(assembled.module)
            assembled.module.recompile()
            return assembled

        right = compiler.assemble
        monkeypatch.setattr(compiler, "assemble", assemble)

    return install


@pytest.fixture(autouse=True)
def capture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classifier need not be captured again for every test."""
    right = compiler.from_torch.capture

    def capture(network: torch.nn.Module, example: Tensor, layer: str | None) -> fx.GraphModule:
        if not hasattr(network, "stem") or layer is not None:
            return right(network, example, layer)
        if not CAPTURED:
            CAPTURED.append(right(network, example))
        return copy.deepcopy(CAPTURED[0])

    monkeypatch.setattr(compiler.from_torch, "capture", capture)


def compiled(program: str = "soft_pullback", **options: Any) -> sptrace.Program:
    return sptrace.compile(classifier(), images(1), program=program, **options)


def measured(program: sptrace.Program) -> Verification:
    result = program.description.verification
    assert result is not None
    return result


def scale_initializer(name: str, factor: float) -> Corrupt:
    def corrupt(model: onnx.ModelProto) -> None:
        [tensor] = [tensor for tensor in model.graph.initializer if tensor.name == name]
        scaled = numpy_helper.to_array(tensor) * np.float32(factor)
        tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))

    return corrupt


# --- Right programs ---


def test_a_right_program_agrees_to_a_few_digits_less_than_float32_has() -> None:
    result = measured(compiled())
    assert result.tolerance == TOLERANCE
    assert result.measure == "maximum"
    assert result.torch == torch.__version__
    for batch in result.batches:
        for error in (
            batch.attribution_to_module,
            batch.attribution_to_eager,
            batch.logits_to_module,
            batch.logits_to_eager,
        ):
            assert 0 <= error < 5e-6


@pytest.mark.parametrize("count", [1, 3])
def test_two_batch_sizes(count: int) -> None:
    program = sptrace.compile(classifier(), images(count))
    assert [batch.batch for batch in measured(program).batches] == [count, count + 1]


@pytest.mark.parametrize(
    ("program", "softening"),
    [("gradient", "paper"), ("soft_pullback", sptrace.Softening("paper", rule={"max_pool": "hard"}))],
)
def test_hard_gates_are_measured_by_norms(program: str, softening: Any) -> None:
    result = measured(compiled(program, softening=softening))
    assert result.measure == "norm"
    assert result.tolerance == TOLERANCE
    if program == "gradient":
        assert [batch.doubt for batch in result.batches] == [0.0, 0.0]


def test_the_tolerances_are_the_documented_ones() -> None:
    assert (bounds.TOLERANCE, description.SPREAD) == (TOLERANCE, SPREAD)


# --- Wrong files ---


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("stem.0.folded_weight", "soft_pullback"),
        ("block.0.folded_bias", "soft_pullback"),
        ("block.3.weight", "gradient"),
        ("head.1.bias", "gradient"),
    ],
)
def test_a_weight_that_is_off_by_a_hundredth(
    name: str, program: str, emit_corrupted: Callable[[Corrupt], None]
) -> None:
    """Through the logits, which are held to the narrow tolerance also where gates are hard."""
    emit_corrupted(scale_initializer(name, 1.01))
    with pytest.raises(VerificationError, match=r"^the (logits|attribution) of the ONNX program") as error:
        compiled(program)
    assert "\n" not in str(error.value)
    assert "nothing was saved" in str(error.value)


def scale_output(name: str, factor: float) -> Corrupt:
    """Multiplies an output of the program."""

    def corrupt(model: onnx.ModelProto) -> None:
        [last] = [node for node in model.graph.node if node.output[0] == name]
        last.output[0] = "right"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
        model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [name]))

    return corrupt


@pytest.mark.parametrize(
    ("program", "output", "factor", "refused"),
    [
        ("soft_pullback", "attribution", 1 + 0.5 * TOLERANCE, False),
        ("soft_pullback", "attribution", 1 + 2 * TOLERANCE, True),
        ("soft_pullback", "logits", 1 + 0.5 * TOLERANCE, False),
        ("soft_pullback", "logits", 1 + 2 * TOLERANCE, True),
        ("gradient", "attribution", 1 + 0.5 * TOLERANCE, False),
        ("gradient", "attribution", 1 + 2 * TOLERANCE, True),
        ("gradient", "logits", 1 + 0.5 * TOLERANCE, False),
        ("gradient", "logits", 1 + 2 * TOLERANCE, True),
    ],
)
def test_the_bounds_are_where_they_should_be(
    program: str, output: str, factor: float, refused: bool, emit_corrupted: Callable[[Corrupt], None]
) -> None:
    emit_corrupted(scale_output(output, factor))
    if refused:
        with pytest.raises(
            VerificationError, match=f"^the {output} of the ONNX program and of its torch.fx program"
        ):
            compiled(program)
    else:
        batch = measured(compiled(program)).batches[0]
        error = batch.attribution_to_module if output == "attribution" else batch.logits_to_module
        assert error == pytest.approx(factor - 1, rel=0.1)


def change_one_pixel(by: float) -> Corrupt:
    """Adds to the attribution of one pixel of the second channel, in every sample."""

    def corrupt(model: onnx.ModelProto) -> None:
        [last] = [node for node in model.graph.node if node.output[0] == "attribution"]
        last.output[0] = "right"
        pixel = np.zeros((1, 3, 16, 16), np.float32)
        pixel[0, 1, 5, 5] = by
        model.graph.initializer.append(numpy_helper.from_array(pixel, "pixel"))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "pixel"], ["attribution"]))

    return corrupt


@pytest.mark.parametrize(("program", "refused"), [("soft_pullback", True), ("gradient", False)])
def test_the_measures_are_what_they_should_be(
    program: str, refused: bool, emit_corrupted: Callable[[Corrupt], None]
) -> None:
    """One pixel off by twice the tolerance of the largest value: too much by the maximum, little by the norm."""
    attribution, _ = compiled(program).module(images(1), torch.tensor([-1]))
    off = 2 * TOLERANCE * attribution.abs().max().item()
    assert off < 0.8 * TOLERANCE * attribution.norm()
    emit_corrupted(change_one_pixel(off))
    if refused:
        with pytest.raises(VerificationError, match=r"differ by 2\.0e-04 at batch size 1, more than 1e-04"):
            compiled(program)
    else:
        error = measured(compiled(program)).batches[0].attribution_to_module
        assert error == pytest.approx(off / attribution.norm().item(), rel=0.1)


@pytest.mark.parametrize("program", ["soft_pullback", "gradient"])
@pytest.mark.parametrize("output", ["attribution", "logits"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_nan_is_refused(
    number: float, output: str, program: str, emit_corrupted: Callable[[Corrupt], None]
) -> None:
    emit_corrupted(scale_output(output, number))
    with pytest.raises(VerificationError, match=r"differ by (nan|inf) " if output == "attribution" else None):
        compiled(program)


def test_one_infinite_logit(emit_corrupted: Callable[[Corrupt], None]) -> None:
    """It is not predicted, and the attribution is right."""

    def corrupt(model: onnx.ModelProto) -> None:
        [last] = [node for node in model.graph.node if node.output[0] == "logits"]
        last.output[0] = "right"
        infinite = np.zeros((1, 7), np.float32)
        infinite[0, least] = -np.inf
        model.graph.initializer.append(numpy_helper.from_array(infinite, "infinite"))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "infinite"], ["logits"]))

    with torch.no_grad():
        least = int(classifier()(images(1)).argmin())
    emit_corrupted(corrupt)
    with pytest.raises(VerificationError, match=r"^the logits of the ONNX program .* differ by inf "):
        compiled("gradient")


def test_an_error_in_the_second_batch_size_alone(emit_corrupted: Callable[[Corrupt], None]) -> None:
    """Attributions divided by the number of samples are right for one."""

    def divide_by_batch(model: onnx.ModelProto) -> None:
        [last] = [node for node in model.graph.node if node.output[0] == "attribution"]
        last.output[0] = "right"
        model.graph.node.extend(
            [
                onnx.helper.make_node("Shape", ["image"], ["batch"], end=1),
                onnx.helper.make_node("Cast", ["batch"], ["count"], to=onnx.TensorProto.FLOAT),
                onnx.helper.make_node("Div", ["right", "count"], ["attribution"]),
            ]
        )

    emit_corrupted(divide_by_batch)
    with pytest.raises(VerificationError, match=r"differ by 5\.0e-01 at batch size 2,"):
        compiled()


# --- Hard gates in doubt ---


def gate_at_its_threshold(width: int) -> tuple[torch.nn.Module, Tensor]:
    """A network one of whose gates gets 0, but for rounding, from the picture beside it."""
    image = images(1)
    network = small(
        lambda self, x: self.last(torch.relu(self.first(x.flatten(1)))),
        first=torch.nn.Linear(768, width),
        last=torch.nn.Linear(width, 5),
    )
    first = network.get_submodule("first")
    assert isinstance(first, torch.nn.Linear)
    with torch.no_grad():
        first.bias[3] -= first(image.flatten(1))[0, 3]
        assert abs(first(image.flatten(1))[0, 3]) < 1e-6
    return network, image


def shift_bias(by: float) -> Corrupt:
    """Moves the gate that is at its threshold to one side of it, by no more than rounding does."""

    def corrupt(model: onnx.ModelProto) -> None:
        [bias] = [tensor for tensor in model.graph.initializer if tensor.name == "first.bias"]
        moved = numpy_helper.to_array(bias).copy()
        moved[3] += by
        bias.CopyFrom(numpy_helper.from_array(moved, bias.name))

    return corrupt


@pytest.mark.filterwarnings("error::sptrace.SptraceWarning")
def test_a_gate_in_doubt_widens_the_bound(emit_corrupted: Callable[[Corrupt], None]) -> None:
    """As far as throwing it to the other side moves the gradient, four times."""
    network, image = gate_at_its_threshold(3000)
    errors = []
    for by in (-1e-6, 2e-6):  # the second from where the first has put it
        emit_corrupted(shift_bias(by))
        result = measured(sptrace.compile(network, image, program="gradient"))
        batch = result.batches[0]
        errors.append(batch.attribution_to_eager)
        assert batch.attribution_to_eager <= result.allowed(batch)
        assert (batch.doubt > 0) == (max(batch.attribution_to_module, batch.attribution_to_eager) > TOLERANCE)
    assert max(errors) > 10 * TOLERANCE


def test_gates_in_doubt_that_move_too_much(emit_corrupted: Callable[[Corrupt], None]) -> None:
    """Nothing is said about the example then, and that is said; a picture of sptrace's own is compared."""
    network, image = gate_at_its_threshold(12)
    said = []
    for by in (-1e-6, 2e-6):
        emit_corrupted(shift_bias(by))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            result = measured(sptrace.compile(network, image, program="gradient"))
        assert [str(warning.message) for warning in caught if warning.category is sptrace.SptraceWarning] == [
            *result.notes
        ]
        assert max(batch.attribution_to_eager for batch in result.batches) < TOLERANCE
        said += result.notes
    assert any("not verified on the example" in note and "(1 relu in the top level)" in note for note in said)


def test_what_float32_decides_for_no_picture() -> None:
    """Two ways to the same numbers: what is left of their difference is rounding, and so are its gates."""

    def body(self: Any, x: Tensor) -> Tensor:
        one = self.second(self.first(x))
        other = torch.nn.functional.conv2d(x, torch.einsum("ob,bihw->oihw", self.square, self.first.weight))
        return self.head(torch.relu(one - other).mean((2, 3)) * 1e6)

    first, second = torch.nn.Conv2d(3, 8, 3, bias=False), torch.nn.Conv2d(8, 8, 1, bias=False)
    network = small(body, first=first, second=second, head=torch.nn.Linear(8, 5), square=torch.ones(8, 8))
    network.square.copy_(second.weight[:, :, 0, 0])
    with pytest.raises(
        VerificationError, match=r"cannot be verified: on .* the network itself moves by .*nothing"
    ):
        sptrace.compile(network, images(1), program="gradient")


# --- Examples that tell nothing, and networks that do not ---


@pytest.mark.parametrize("factor", [-1.0, 1.01])
@pytest.mark.parametrize("brightness", [0.0, 1.0])
def test_a_wrong_rule_is_refused_whatever_the_example(
    brightness: float, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ones and zeros leave much undecided where gates are hard; a picture of sptrace's own does not."""

    def wrong(pull: Any, v: fx.Node, y: fx.Node, *arguments: Any, **gate: Any) -> Any:
        for argument, part in right(pull, v, y, *arguments, **gate):
            yield argument, pull.times(part, factor if facts(y).path == "act" else 1)

    right = TABLE[gates.relu]
    monkeypatch.setitem(TABLE, gates.relu, wrong)
    with pytest.raises(VerificationError, match="the eager reference differ"):
        compiled_on(torch.full((1, 3, 16, 16), brightness), "gradient")


@pytest.mark.slow
@pytest.mark.parametrize("example", ["ones", "zeros", "random", "smooth"])
def test_a_deep_network_whose_every_relu_is_negated(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where gates in doubt move everything, too."""

    def negated(pull: Any, v: fx.Node, y: fx.Node, *arguments: Any, **gate: Any) -> Any:
        for argument, part in right(pull, v, y, *arguments, **gate):
            yield argument, pull.times(part, -1.0)

    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    line = torch.linspace(0, 1, 64)
    smooth = torch.stack([line[:, None] * line, line.expand(64, 64), line.sin()[:, None].expand(64, 64)])
    pictures = {
        "ones": torch.ones(1, 3, 64, 64),
        "zeros": torch.zeros(1, 3, 64, 64),
        "random": images(1, size=64),
        "smooth": smooth[None],
    }
    right = TABLE[gates.relu]
    monkeypatch.setitem(TABLE, gates.relu, negated)
    with pytest.raises(VerificationError, match="the eager reference differ"):
        sptrace.compile(network, pictures[example], program="gradient")


def compiled_on(example: Tensor, program: str) -> sptrace.Program:
    return sptrace.compile(classifier(), example, program=program)


def test_an_example_whose_explanation_is_zero() -> None:
    with pytest.warns(
        sptrace.SptraceWarning, match="not verified on the example: there the explanation is zero"
    ):
        result = measured(compiled_on(torch.zeros(1, 3, 16, 16), "input_x_gradient"))
    assert len(result.notes) == 1
    assert [batch.batch for batch in result.batches] == [1, 2]


def test_a_network_that_says_something_about_the_example_alone() -> None:
    """It looks for the example's own pattern, which neither noise nor the mirrored example has."""
    example = images(1)
    pattern = (example - example.flip(-1)).detach()
    threshold = float((pattern * example).sum()) / 2

    def body(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.relu((pattern * x).sum((1, 2, 3)) - threshold)[:, None])

    network = small(body, head=torch.nn.Linear(1, 3))
    with pytest.warns(
        sptrace.SptraceWarning, match="^verified on the example alone: on a picture of sptrace"
    ):
        program = sptrace.compile(network, example, program="gradient")
    leaf = (0.9 * example).double().requires_grad_()
    logits = copy.deepcopy(network).double()(leaf)
    (wanted,) = torch.autograd.grad(logits[0, 1], leaf)
    given, _ = program.module(leaf.detach().float(), torch.tensor([1]))
    assert wanted.any()
    assert (given - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_network_whose_explanation_is_zero() -> None:
    dead = small(lambda self, x: self.head(torch.relu(x.mean((2, 3)) - 3)), head=torch.nn.Linear(3, 5))
    with pytest.raises(
        VerificationError, match="explanation is zero everywhere, and the network's output the same"
    ):
        sptrace.compile(dead, images(1))


@pytest.mark.parametrize("program", ["gradient", "soft_pullback"])
def test_a_faint_picture_beside_a_strong_one(program: str, emit_corrupted: Callable[[Corrupt], None]) -> None:
    """Its error is a share of its own largest value."""
    network = small(lambda self, x: self.head(x.square().mean((2, 3))), head=torch.nn.Linear(3, 5))
    strong_and_faint = torch.cat([images(1), 1e-4 * images(1)])

    def add_to_all(model: onnx.ModelProto) -> None:
        [last] = [node for node in model.graph.node if node.output[0] == "attribution"]
        last.output[0] = "right"
        model.graph.initializer.append(numpy_helper.from_array(np.float32(3e-8), "little"))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "little"], ["attribution"]))

    emit_corrupted(add_to_all)
    with pytest.raises(VerificationError, match="attribution of the ONNX program"):
        sptrace.compile(network, strong_and_faint, program=program)


def masked(value: float) -> torch.nn.Module:
    """Two classes in three are masked."""
    mask = torch.zeros(7)
    network = small(
        lambda self, x: self.head(torch.tanh(x.mean((2, 3)))) + self.mask,
        head=torch.nn.Linear(3, 7),
        mask=mask,
    )
    network.mask.zero_()[1:6] = value
    return network


@pytest.mark.parametrize("value", [-1e4, -1e9, -math.inf])
def test_masked_classes_do_not_stretch_the_scale(
    value: float, emit_corrupted: Callable[[Corrupt], None]
) -> None:
    result = measured(sptrace.compile(masked(value), images(1)))
    assert max(batch.logits_to_eager for batch in result.batches) < 1e-6

    def scale_weight(model: onnx.ModelProto) -> None:
        """Of the classes that are left."""
        [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "head.bias"]
        weight.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(weight) + np.float32(0.01), weight.name)
        )

    emit_corrupted(scale_weight)
    with pytest.raises(VerificationError, match="logits of the ONNX program"):
        sptrace.compile(masked(value), images(1))


def test_a_network_that_answers_nan() -> None:
    with pytest.raises(
        VerificationError, match="on the example the network itself answers NaN; nothing was saved"
    ):
        sptrace.compile(small(lambda self, x: (x.mean((2, 3)) - 2).sqrt()), images(1))


def test_a_saturated_network() -> None:
    network = small(lambda self, x: (1e4 * self.head(x.mean((2, 3)))).softmax(1), head=torch.nn.Linear(3, 5))
    with pytest.raises(VerificationError) as error:
        sptrace.compile(network, images(1), keep_link=True)
    assert "saturated" in str(error.value)
    assert "error of sptrace" not in str(error.value)


# --- Wrong programs, faithfully written ---


def swap_rule(module: fx.GraphModule) -> None:
    """The gates of the pullback become sigmoids: a plausible explanation, and not the one asked for."""
    for node in module.graph.nodes:
        if node.target == torch.ops.aten.erf.default:
            node.target = torch.ops.aten.tanh.default


def other_class(module: fx.GraphModule) -> None:
    """The smallest logit is explained."""
    for node in module.graph.nodes:
        if node.target == torch.ops.aten.argmax.default:
            node.target = torch.ops.aten.argmin.default


def scale_weight(module: fx.GraphModule) -> None:
    """Not in place: the graph reads the network's own memory."""
    weight = module.get_buffer("block.3.weight")
    module.get_submodule("block.3").weight = weight * 1.01


@pytest.mark.parametrize("corrupt", [swap_rule, scale_weight])
def test_a_wrong_program_disagrees_with_the_eager_reference(
    corrupt: Callable[[fx.GraphModule], None],
    assemble_corrupted: Callable[[Callable[[fx.GraphModule], None]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if corrupt is swap_rule:
        from sptrace.compiler.emission import EMITTERS

        monkeypatch.setitem(EMITTERS, torch.ops.aten.tanh.default, lambda onnx, node, x: onnx.op("Tanh", x))
    assemble_corrupted(corrupt)
    with pytest.raises(VerificationError, match="of the ONNX program and of the eager reference differ"):
        compiled(softening="paper")  # which leaves the weights under their names


def test_the_wrong_class(
    assemble_corrupted: Callable[[Callable[[fx.GraphModule], None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sptrace.compiler.emission import EMITTERS

    monkeypatch.setitem(
        EMITTERS,
        torch.ops.aten.argmin.default,
        lambda onnx, node, x, dim, keepdim=False: onnx.op("ArgMin", x, axis=dim, keepdims=int(keepdim)),
    )
    assemble_corrupted(other_class)
    with pytest.raises(
        VerificationError, match="attribution of the ONNX program and of the eager reference differ"
    ):
        compiled()


def test_a_network_that_answers_differently_every_time() -> None:
    """Whatever escapes the other checks: what is compiled is not what is run."""

    class Counting(torch.nn.Module):
        calls = 0

        def forward(self, image: Tensor) -> Tensor:
            self.calls += 1
            return image.mean((2, 3)) * (1 + 0.0002 * self.calls)

    with pytest.raises(VerificationError, match="answers the same picture differently every time"):
        sptrace.compile(Counting().eval(), images(1))


def test_nothing_is_saved(tmp_path: Path, emit_corrupted: Callable[[Corrupt], None]) -> None:
    emit_corrupted(scale_output("attribution", 1.5))
    with pytest.raises(VerificationError):
        compiled().save(tmp_path / "explainer.onnx")
    assert list(tmp_path.iterdir()) == []
