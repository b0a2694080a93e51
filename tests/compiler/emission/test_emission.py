"""The file: what stands in it, under which names, how often, and for how many pictures."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from helpers import deterministic
from helpers.rule_checks import Op, SideBySide, compile_pullback, numbers
from helpers.small_networks import transformer
from torch import Tensor, nn

import sptrace
from sptrace import passes
from sptrace.artifact.description import Preprocessing
from sptrace.artifact.softening import Softening
from sptrace.compiler.assemble import assemble
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.composition import compose
from sptrace.compiler.emission import EMITTERS, emit
from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, without_data
from sptrace.compiler.graph.facts import Facts, Target, facts, learn, record
from sptrace.compiler.graph.results import give
from sptrace.errors import UnsupportedError

NEG: Target = torch.ops.aten.neg.default

SIZE = (15, 17)


class Block(nn.Module):
    """Two convolutions around a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, groups=2)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu(self.norm1(self.conv1(x))))
        return self.relu(y + self.shortcut(x))  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """A small network with about 200 000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2), nn.ReLU6(), nn.MaxPool2d(3, 2, ceil_mode=True))
        self.blocks = nn.ModuleList([Block(32, 64, 1), Block(64, 128, 2)])
        self.head = nn.Linear(128, 10)
        self.project = nn.Linear(4, 7)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return ConvNet()


@pytest.fixture(scope="module")
def module(network: nn.Module) -> torch.fx.GraphModule:
    preprocessing = Preprocessing(size=SIZE, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    assembled = assemble(capture(network, numbers(1, 3, *SIZE)), preprocessing, Softening("paper"))
    return compose("soft_pullback", assembled, {})


@pytest.fixture(scope="module")
def proto(module: torch.fx.GraphModule) -> onnx.ModelProto:
    return ir.to_proto(emit(module, "small"))


def test_versions(proto: onnx.ModelProto) -> None:
    assert [(opset.domain, opset.version) for opset in proto.opset_import] == [("", 21)]
    assert proto.ir_version == 10
    assert proto.producer_name == "sptrace"
    assert {node.domain for node in proto.graph.node} == {""}
    onnx.checker.check_model(proto, full_check=True)


def test_nodes_are_named_after_the_modules_they_come_from(network: nn.Module, proto: onnx.ModelProto) -> None:
    paths = {path for path, _ in network.named_modules() if path}
    forward: list[onnx.NodeProto] = []
    adjoint: list[onnx.NodeProto] = []
    other: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        origin, _, op = node.name.rpartition("/")
        assert op.partition("_")[0] == node.op_type or node.op_type == "Identity"
        path, _, last = origin.rpartition("/")
        (adjoint if last == "pullback" else forward if origin in paths else other).append(node)
        assert last != "pullback" or path in paths | {"network"}
    layers = {"stem.0", "stem.1", "stem.2", "head"} | {
        f"blocks.{index}.{name}" for index in (0, 1) for name in ("conv1", "conv2", "shortcut", "relu")
    }
    assert {node.name.rpartition("/")[0] for node in forward} == layers | {"blocks.0", "blocks.1"}
    assert {node.name.rpartition("/pullback/")[0] for node in adjoint} >= layers
    # What is left: the network's top level, and the file's outputs.
    assert {node.name.partition("/")[0] for node in other} == {"network", "attribution", "logits"}


def test_names_are_unique_and_values_carry_those_of_their_nodes(proto: onnx.ModelProto) -> None:
    graph = proto.graph
    assert max(Counter(node.name for node in graph.node).values()) == 1
    values = [
        *(item.name for item in [*graph.input, *graph.initializer]),
        *(output for node in graph.node for output in node.output),
    ]
    assert max(Counter(values).values()) == 1
    assert all(list(node.output) == [node.name] for node in graph.node)
    assert [item.name for item in graph.input] == ["image", "target"]
    assert [item.name for item in graph.output] == ["attribution", "logits"]


@pytest.mark.parametrize("name", ["attribution", "logits", "constant", "network"])
def test_constants_do_not_take_the_names_of_the_interface(name: str) -> None:
    op = Op(lambda image: image * 2)
    op.register_buffer(name, numbers(3, 1, 1))
    op.body = lambda image: image * getattr(op, name)
    proto = ir.to_proto(emit(compile_pullback(op, numbers(2, 3, 4, 5)), "op"))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    assert [item.name for item in session.get_inputs()] == ["image", "cotangent"]
    assert [item.name for item in session.get_outputs()] == ["attribution", "logits"]


def test_the_file_holds_one_copy_of_the_weights(network: nn.Module, proto: onnx.ModelProto) -> None:
    weights = sum(
        data.numel() * data.element_size()
        for name, data in network.state_dict().items()
        if not name.startswith("project")  # nobody reads it
    )
    assert len(proto.SerializeToString()) < 1.1 * weights
    names = {item.name for item in proto.graph.initializer}
    assert names >= {
        "head.folded_weight",
        "head.bias",
        "blocks.0.conv2.weight",
        "blocks.1.conv1.folded_weight",
    }
    assert not any(name.startswith(("project", "blocks.1.conv1.weight", "blocks.0.norm1")) for name in names)


def test_adjoints_of_unit_stride_are_convolutions(proto: onnx.ModelProto) -> None:
    """The 1x1 shortcut of stride 2 stays a ConvTranspose: it has no flipped form."""
    transposed = [node.name for node in proto.graph.node if node.op_type == "ConvTranspose"]
    strided = {"stem.0", "blocks.1.conv1", "blocks.1.shortcut"}
    assert {name.partition("/")[0] for name in transposed} <= strided
    names = {node.name for node in proto.graph.node if node.op_type == "Conv"}
    assert names >= {"blocks.0.conv1/pullback/Conv", "blocks.0.conv2/pullback/Conv", "blocks.0.conv1/Conv"}


def test_the_batch_is_free(module: torch.fx.GraphModule, proto: onnx.ModelProto) -> None:
    for item in [*proto.graph.input, *proto.graph.output]:
        first, *rest = item.type.tensor_type.shape.dim
        assert first.dim_param == "N"
        assert all(dim.HasField("dim_value") for dim in rest)
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    for batch in (1, 2, 5):
        image, target = numbers(batch, 3, *SIZE), torch.arange(batch) - 1
        given = session.run(None, {"image": image.numpy(), "target": target.numpy()})
        for result, expected in zip(given, module(image, target), strict=True):
            np.testing.assert_allclose(
                result, expected.numpy(), rtol=0, atol=1e-5 * expected.abs().max().item()
            )


def test_no_size_but_the_batch_is_left_open(proto: onnx.ModelProto) -> None:
    """Runtimes plan memory by the shapes in the file: every value between has one, with N in its first place."""
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    shapes = {item.name: item.type.tensor_type.shape.dim for item in inferred.graph.value_info}
    produced = {output for node in proto.graph.node for output in node.output} - {"attribution", "logits"}
    assert produced <= shapes.keys()
    for name in produced:
        assert all(
            dim.HasField("dim_value") or (place == 0 and dim.dim_param == "N")
            for place, dim in enumerate(shapes[name])
        ), name


@pytest.mark.parametrize("size", [(5, 6), (7, 8), (9, 6)], ids=str)
def test_max_pool_has_the_windows_of_pytorch(size: tuple[int, int]) -> None:
    """Also where ceil_mode adds a window that hangs over, or drops one that would lie in the padding alone."""
    options = [
        (kernel, stride, padding, dilation)
        for kernel, stride, padding, dilation in product((1, 2, 3), (1, 2, 3, 4), (0, 1), (1, 2))
        if padding <= kernel // 2
    ]
    pools = [
        nn.MaxPool2d(*numbers, ceil_mode=ceil_mode) for numbers in options for ceil_mode in (False, True)
    ]
    op = Op(SideBySide(*pools))
    image = numbers(2, 1, *size)
    module = capture(op, image)
    passes.run(passes.PREPARE, module)
    output = next(node for node in module.graph.nodes if node.op == "output")
    give(module.graph, {"logits": output.args[0]})
    proto = ir.to_proto(emit(module, "pools"))
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    (logits,) = session.run(None, {"image": image.numpy()})
    np.testing.assert_array_equal(logits, op(image).numpy())
    assert not any(item.name == "ceil_mode" for node in proto.graph.node for item in node.attribute)


def refusal(module: torch.fx.GraphModule) -> str:
    """The one line that says why `module` cannot be written."""
    with pytest.raises(UnsupportedError) as caught:
        emit(module, "op")
    message = str(caught.value)
    assert "\n" not in message
    assert "rule_checks.py:" in message  # where the network's forward stands
    return message


def test_an_op_without_an_emitter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = compile_pullback(Op(torch.neg), numbers(2, 3, 4, 5))
    monkeypatch.delitem(EMITTERS, NEG)
    assert refusal(module).startswith("there is no ONNX emitter for aten.neg.default (")


def test_an_argument_that_an_emitter_does_not_know_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = compile_pullback(Op(torch.neg), numbers(2, 3, 4, 5))
    monkeypatch.setitem(EMITTERS, NEG, lambda onnx, node, x, base: onnx.op("Neg", x))
    message = refusal(module)
    assert message.startswith("the ONNX emitter for aten.neg.default (")
    assert message.endswith(") does not cover its arguments: missing a required argument: 'base'")


def test_another_dtype_is_refused() -> None:
    module = compile_pullback(Op(torch.neg), numbers(2, 3, 4, 5))
    neg = next(node for node in module.graph.nodes if node.target == NEG)
    learn(neg, values=tuple(tensor.double() for tensor in facts(neg).values))
    assert re.fullmatch(
        r"'neg' \(.*\) is float64: use one of float32, float16, int64, int32, bool", refusal(module)
    )


@pytest.mark.parametrize("with_norm", [False, True])
def test_the_deviation_of_a_layer_norm(with_norm: bool) -> None:
    """It is an output of the norm; where there is no norm of these statistics, it is computed."""
    module = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    builder = GraphBuilder(module)
    image = module.graph.placeholder("image")
    record(image, Facts(without_data(5, 8, dtype=torch.float32)))
    results = {"deviation": builder.call(gates.inverse_deviation, image, [8], 1e-3)}
    if with_norm:
        with module.graph.inserting_after(image):
            norm = builder.call(gates.layer_norm, image, [8], None, None, 1e-3, rule="frozen", tau=None)
            builder.call(gates.layer_norm, image, [5, 8], None, None, 1e-3, rule="frozen", tau=None)
        results["norm"] = norm
    give(module.graph, results)
    model = ir.to_proto(emit(module, "norm"))
    kinds = Counter(node.op_type for node in model.graph.node)
    assert (kinds["ReduceMean"] == 0) == with_norm
    x = numbers(3, 5, 8)
    given = onnxruntime.InferenceSession(model.SerializeToString()).run(["deviation"], {"image": x.numpy()})[
        0
    ]
    wanted = 1 / np.sqrt(x.double().numpy().var(axis=-1, keepdims=True) + 1e-3)
    np.testing.assert_allclose(given, wanted, rtol=1e-6)


def test_norms_after_sums_survive_fusion(tmp_path: Path) -> None:
    """Of a SkipLayerNormalization, only onnxruntime's kernel for the CPU computes the deviation."""
    path, optimised = tmp_path / "program.onnx", tmp_path / "optimised.onnx"
    sptrace.compile(transformer(), deterministic.images(2, 1, 32)).save(path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(optimised)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(optimised).graph.node
    read = {name for node in nodes for name in node.input}
    norms = [node for node in nodes if node.op_type.endswith("LayerNormalization")]
    assert norms
    for node in norms:
        assert node.op_type == "LayerNormalization" or not read & set(node.output[1:3])
