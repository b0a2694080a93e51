from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_networks import Small, assert_same_values, classifier, images, nodes, ops, small
from torch import Tensor, fx, nn
from torch.export import Dim

from sptrace.compiler.capture.from_torch import capture, check
from sptrace.compiler.graph.builder import is_batch, parameter, shape, value
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.graph.sizes import BATCH
from sptrace.errors import SptraceError, UnsupportedError

# --- What the graph is ---


def test_the_input_is_called_image() -> None:
    module = capture(classifier(), images(1))
    [image] = [node for node in module.graph.nodes if node.op == "placeholder"]
    assert image.name == "image"
    assert shape(image) == [BATCH, 3, 16, 16]
    assert value(image).dtype == torch.float32


def test_the_one_output_is_the_logits() -> None:
    module = capture(classifier(), images(1))
    [output] = [node for node in module.graph.nodes if node.op == "output"]
    [logits] = output.all_input_nodes
    assert output.args == (logits,)
    assert shape(logits) == [BATCH, 7]


def test_values_are_those_of_the_network() -> None:
    network = classifier()
    assert_same_values(capture(network, images(1)), network)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_batch_is_free_whatever_the_example_has(count: int) -> None:
    module = capture(classifier(), images(count))
    tensors = [node for node in module.graph.nodes if facts(node).values and node.op != "get_attr"]
    assert all(shape(node)[0] == BATCH for node in tensors)
    assert all(is_batch(node, 0) for node in tensors)
    assert_same_values(module, classifier())


def test_nodes_know_where_they_came_from() -> None:
    module = capture(classifier(), images(1))
    paths = [facts(node).path for node in nodes(module, "aten.conv2d.default")]
    assert paths == ["stem.0", "block.0", "block.3"]
    assert [facts(node).path for node in nodes(module, "aten.add.Tensor")] == [""]
    [norm, _] = nodes(module, "aten.batch_norm.default")
    assert facts(norm).path == "stem.1"
    assert all(facts(node).adjoint is False for node in module.graph.nodes)
    for node in [*nodes(module, "aten.conv2d.default"), norm]:
        assert "small_networks.py:" in facts(node).source
        assert facts(node).source.endswith("return self.body(self, image).flatten(1)")


def test_constants_keep_their_names() -> None:
    network = classifier()
    module = capture(network, images(1))
    constants = [node for node in module.graph.nodes if node.op == "get_attr"]
    state = network.state_dict()
    assert {node.target for node in constants} == set(state)
    assert {node.target for node in constants if not node.users} == {
        name for name in state if name.endswith("num_batches_tracked")
    }
    for node in constants:
        assert torch.equal(parameter(module, node), state[node.target])
        assert not parameter(module, node).requires_grad
        assert shape(node) == list(state[node.target].shape)


def test_a_buffer_is_a_constant() -> None:
    network = small(lambda self, x: x * self.scale, scale=torch.tensor([[[2.0]]]))
    module = capture(network, images(1))
    assert [node.target for node in module.graph.nodes if node.op == "get_attr"] == ["scale"]
    assert_same_values(module, network)


def test_a_buffer_that_is_not_saved_is_a_constant_too() -> None:
    network = Small(lambda self, x: x * self.scale).eval()
    network.register_buffer("scale", torch.tensor([[[2.0]]]), persistent=False)
    module = capture(network, images(1))
    assert [node.target for node in module.graph.nodes if node.op == "get_attr"] == ["scale"]
    assert_same_values(module, network)


def test_a_number_in_the_code_is_a_constant() -> None:
    network = Small(lambda self, x: x * torch.tensor([[[0.5]]])).eval()
    module = capture(network, images(1))
    assert [node.op for node in module.graph.nodes].count("get_attr") == 1
    assert_same_values(module, network)


def test_modules_that_share_a_parameter_share_the_constant() -> None:
    first, second = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
    second.weight = first.weight
    network = Small(lambda self, x: self.second(self.first(x)), first=first, second=second).eval()
    module = capture(network, images(1))
    assert ops(module)["aten.conv2d.default"] == 2
    assert len({call.args[1] for call in nodes(module, "aten.conv2d.default")}) == 1
    assert_same_values(module, network)


def test_a_module_called_twice() -> None:
    network = small(lambda self, x: self.conv(torch.relu(self.conv(x))), conv=nn.Conv2d(3, 3, 3))
    module = capture(network, images(1))
    assert [facts(node).path for node in nodes(module, "aten.conv2d.default")] == ["conv", "conv"]
    assert_same_values(module, network)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: {"scores": y},
        lambda y: (y,),
        lambda y: [y],
        lambda y: {"features": y + 1, "logits": y, "loss": None},
    ],
)
def test_logits_in_a_container(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapped(nn.Module):
        def forward(self, image: Tensor) -> Any:
            return wrap(image.mean((2, 3)))

    module = capture(Wrapped().eval(), images(1))
    assert shape(module.graph.output_node().args[0]) == [BATCH, 3]
    assert torch.equal(module(images(2)), images(2).mean((2, 3)))


def test_the_network_is_not_changed() -> None:
    network = classifier().requires_grad_(True)
    before = {name: data.clone() for name, data in network.state_dict().items()}
    capture(network, images(1))
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module.training for module in network.modules())
    assert all(data.requires_grad and data.grad is None for data in network.parameters())


def test_the_example_is_not_changed() -> None:
    example = images(1)
    capture(small(lambda self, x: x.mul_(2)), example)
    assert torch.equal(example, images(1))


# --- Graph modules ---


def exported(network: nn.Module, *, dynamic: bool = True) -> fx.GraphModule:
    shapes = ({0: Dim("batch")},) if dynamic else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (images(2),), dynamic_shapes=shapes, strict=False)
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module


def test_an_exported_network() -> None:
    network = classifier()
    graph = exported(network)
    assert graph.training  # it means nothing: the graph's mode is fixed, and it refuses eval()
    module = capture(graph, images(1))
    assert_same_values(module, network)
    assert ops(module) == ops(capture(network, images(1)))


def test_an_exported_network_inside_another() -> None:
    network = classifier()
    outer = Small(lambda self, x: self.inner(x * 2), inner=exported(network))
    outer.training = False
    assert_same_values(capture(outer, images(1)), Small(lambda self, x: network(x * 2)).eval())


def test_an_exported_network_with_a_fixed_batch() -> None:
    with pytest.raises(UnsupportedError, match=r"^the network fixes the batch size"):
        capture(exported(classifier(), dynamic=False), images(1))


def test_a_traced_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten()).eval()
    assert_same_values(capture(fx.symbolic_trace(network), images(1)), network)


# --- Refusals ---


def one_line(error: pytest.ExceptionInfo[SptraceError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert message
    return message


def test_train_mode() -> None:
    with pytest.raises(SptraceError, match=r"^the network is in train mode.*call \.eval\(\)") as error:
        capture(classifier().train(), images(1))
    one_line(error)


def test_one_module_in_train_mode() -> None:
    network = classifier()
    network.get_submodule("block.1").train()
    with pytest.raises(SptraceError, match=r"'block\.1' is in train mode: call \.eval\(\)") as error:
        capture(network, images(1))
    one_line(error)


def test_a_module_in_train_mode_beside_an_exported_one() -> None:
    outer = Small(lambda self, x: self.inner(x), inner=exported(classifier()), inner_drop=nn.Dropout())
    outer.training = False
    with pytest.raises(SptraceError, match="'inner_drop' is in train mode"):
        capture(outer, images(1))


class Branch(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        if image.sum() > 0:  # the branch
            image = image + 1
        return image.flatten(1)


def test_a_branch_on_data() -> None:
    with open(__file__, encoding="utf-8") as file:
        line = next(number for number, text in enumerate(file, 1) if "# the branch" in text)
    with pytest.raises(UnsupportedError, match=r"^the network branches on the values of a tensor") as error:
        capture(Branch().eval(), images(1))
    assert f"{__file__}:{line}," in one_line(error)
    assert "torch.where" in one_line(error)


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: x.reshape(2, 768),
        lambda self, x: torch.cat([x[0], x[1]])[None].expand(2, -1, -1, -1),
        lambda self, x: x + torch.zeros(2, 1, 1, 1),
    ],
)
def test_a_fixed_batch(body: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedError, match=r"batch|\[2, 1536\]") as error:
        capture(small(body), images(1))
    one_line(error)


@pytest.mark.parametrize("body", [lambda self, x: x[x > 0][None], lambda self, x: x / x.max().item()])
def test_sizes_and_numbers_that_depend_on_data(body: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(UnsupportedError, match="depend on the values of a tensor") as error:
        capture(small(body), images(1))
    assert "small_networks.py:" in one_line(error)


def test_an_error_of_the_network_itself() -> None:
    network = small(lambda self, x: self.conv(x), conv=nn.Conv2d(4, 4, 3))
    with pytest.raises(
        UnsupportedError, match=r"^the network cannot run the example: RuntimeError: .*channels"
    ) as error:
        capture(network, images(1))
    one_line(error)


@pytest.mark.parametrize(
    ("example", "given"),
    [
        (images(1).double(), r"\[1, 3, 16, 16\] torch.float64"),
        (images(1).half(), r"\[1, 3, 16, 16\] torch.float16"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), r"\[1, 3, 16, 16\] torch.uint8"),
        (images(1)[0], r"\[3, 16, 16\] torch.float32"),
        (images(0), r"\[0, 3, 16, 16\] torch.float32"),
        (images(1) / 0, "NaN or infinite"),
        (images(1).numpy(), "ndarray"),
        ([1, 2], "list"),
        (images(1).to("meta"), "meta"),
    ],
)
def test_a_wrong_example(example: Any, given: str) -> None:
    with pytest.raises(
        SptraceError, match=rf"^the example must be a float32 tensor .* not .*{given}"
    ) as error:
        capture(classifier(), example)
    one_line(error)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_dtype(dtype: torch.dtype) -> None:
    with pytest.raises(
        SptraceError, match=rf"^the network's 'stem.0.weight' is {dtype}: call .float\(\)"
    ) as error:
        capture(classifier().to(dtype), images(1))
    one_line(error)


def test_a_buffer_of_another_dtype() -> None:
    network = small(lambda self, x: x * self.scale, scale=torch.ones(1))
    network.double()
    with pytest.raises(SptraceError, match=r"'scale' is torch.float64"):
        capture(network, images(1))


def test_a_network_elsewhere() -> None:
    with pytest.raises(SptraceError, match=r"'stem.0.weight' is on meta: call .cpu\(\)"):
        capture(classifier().to("meta"), images(1))


def test_a_network_made_in_inference_mode() -> None:
    with torch.inference_mode():
        network = classifier()
    with pytest.raises(SptraceError, match=r"'stem.0.weight' was made in inference mode"):
        capture(network, images(1))


@pytest.mark.parametrize("network", ["resnet18", torch.relu, nn.ReLU])
def test_no_network(network: Any) -> None:
    with pytest.raises(SptraceError, match=r"^the network must be a torch.nn.Module, not"):
        check(network, images(1))


class Returns(nn.Module):
    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, image: Tensor) -> Any:
        return self.answer(image)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda x: (x.mean((2, 3)), x.sum((2, 3))),
            r"returns 2 tensors \(\[0\] \[N, 3\] .*, \[1\] .*\): wrap it",
        ),
        (
            lambda x: {"scores": x.mean((2, 3)), "features": x},
            r"returns 2 tensors \(\['scores'\] .*\): wrap",
        ),
        (lambda x: None, "returns 0 tensors, but None: wrap it"),
        (lambda x: x, r"returns \[N, 3, 16, 16\] torch.float32, not one row of logits a picture"),
        (lambda x: x.mean((0, 1)), r"returns \[16, 16\]"),
        (lambda x: x.mean((2, 3)).argmax(1, keepdim=True), r"returns \[N, 1\] torch.int64"),
    ],
)
def test_a_network_that_gives_something_else(answer: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^the network {message}") as error:
        capture(Returns(answer).eval(), images(1))
    one_line(error)


@pytest.mark.parametrize(
    "network", [classifier(), Branch().eval(), Returns(lambda x: x.reshape(2, -1)).eval()]
)
def test_nothing_is_printed_or_logged(
    network: nn.Module,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether it succeeds or fails, and logging works as before afterwards."""
    monkeypatch.setattr(logging.root.manager, "disable", logging.DEBUG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            capture(network, images(1))
        except UnsupportedError:
            assert not isinstance(network, type(classifier()))
    assert capfd.readouterr() == ("", "")
    # torch's machine-readable trace goes to files of its own, if anywhere.
    assert [record for record in caplog.records if not record.name.startswith("torch.__trace")] == []
    assert logging.root.manager.disable == logging.DEBUG
