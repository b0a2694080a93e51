"""The walk: sums where a tensor is read several times, and refusals that say what is in the way and where."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_linear, check_ordinary, compile_pullback, numbers, randomized
from torch import Tensor, fx, nn

from sptrace import passes
from sptrace.artifact.softening import Softening
from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.builder import placeholder
from sptrace.compiler.graph.facts import Target, facts, record
from sptrace.compiler.pullback import TABLE, pull_back
from sptrace.compiler.pullback.table import Cotangents, Pull
from sptrace.errors import UnsupportedError

aten = torch.ops.aten


class Residual(nn.Module):
    """Reads its input thrice, and what it makes of it twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gate = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([x + y, y * self.gate(x)], 1)


class Nested(nn.Module):
    """Calls `function` in its module blocks.0.last."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential())
        self.blocks[0].last = Function(function)
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.blocks(2 * image).flatten(1)  # type: ignore[no-any-return]


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# --- Sums ---


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x + 2 * x - x.mean((2, 3), keepdim=True), id="the image"),
        pytest.param(lambda x: torch.cat([x, x[:, 1:], x.flip(1)], 1), id="the image, by different ops"),
        pytest.param(lambda x: torch.stack([x, x, x], 1), id="one op thrice"),
        pytest.param(lambda x: (y := 3 * x) + y.mT.mT + F.pad(y, (1, -1)), id="an intermediate"),
    ],
)
def test_a_tensor_that_is_read_several_times_gets_the_sum(body: Callable[[Tensor], Tensor]) -> None:
    check_linear(Op(body), 3, 4, 5)


def test_residual_blocks() -> None:
    check_ordinary(Op(randomized(nn.Sequential(Residual(), nn.Conv2d(6, 3, 1), Residual()))), 3, 4, 5)


def test_what_nobody_reads_is_not_computed() -> None:
    def body(x: Tensor) -> Tensor:
        torch.lgamma(x)  # has no rule, and needs none
        return x * 2

    check_linear(Op(body), 1, 2, 3)


def test_an_op_with_several_outputs_gets_a_cotangent_for_each_that_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unbind(pull: Pull, v: dict[int, fx.Node], y: fx.Node, x: fx.Node, dim: int = 0) -> Cotangents:
        read.update(v)
        zeros = pull.call(aten.zeros_like.default, v[0])
        yield x, pull.call(aten.stack.default, [v.get(index, zeros) for index in range(3)], dim)

    def body(x: Tensor) -> Tensor:
        first, _, last = x.unbind(1)
        return first + 2 * last + first.flip(1)

    read: dict[int, fx.Node] = {}
    target: Target = aten.unbind.int
    monkeypatch.setitem(TABLE, target, unbind)
    image, cotangent = numbers(2, 3, 4, 5), numbers(2, 20, seed=1)
    module = capture(Op(body), image)
    passes.remove_identities(module)  # not all passes, or there might be no such op any more
    attribution = pull_back_in_place(module, placeholder(module.graph, "image"), cotangent)(image)
    v = cotangent.reshape(2, 4, 5)
    torch.testing.assert_close(attribution, torch.stack([v + v.flip(1), torch.zeros_like(v), 2 * v], 1))
    assert read.keys() == {0, 2}


def test_pulls_back_to_any_node() -> None:
    """The cotangent of a hidden layer, of which Grad-CAM is made."""
    first, rest = nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(24, 5))
    network = randomized(nn.Sequential(first, rest)).eval()
    image, cotangent = numbers(2, 3, 4, 5), numbers(2, 5, seed=1)
    module = capture(network, image)
    passes.soften(module, Softening("hard"))
    hidden = next(node for node in module.graph.nodes if node.target == aten.conv2d.default)

    leaf = first(image).detach().requires_grad_()
    (expected,) = torch.autograd.grad(rest(leaf), leaf, cotangent)
    torch.testing.assert_close(pull_back_in_place(module, hidden, cotangent)(image), expected)


def pull_back_in_place(module: fx.GraphModule, source: fx.Node, cotangent: Tensor) -> fx.GraphModule:
    """Let `module` return the pullback of its output to `source`, for one fixed cotangent."""
    output = next(node for node in module.graph.nodes if node.op == "output")
    with module.graph.inserting_before(output):
        module.register_buffer("cotangent", cotangent)
        direction = module.graph.get_attr("cotangent")
        record(direction, facts(output.args[0]))
        output.args = (pull_back(module, output.args[0], direction, source),)
    module.recompile()
    return module


# --- Refusals ---


def refusal(network: nn.Module) -> str:
    """The one line that says why the pullback of `network` is refused."""
    with pytest.raises(UnsupportedError) as caught:
        compile_pullback(network, torch.zeros(2, 3, 4, 4))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        pytest.param(
            lambda x: torch.renorm(x, 2, 1, 1.0),
            "there is no pullback rule for aten.renorm.default",
            id="no rule",
        ),
        pytest.param(
            torch.lgamma,
            "aten.lgamma.default has no pullback, for ONNX has no such function",
            id="none that can be had",
        ),
        pytest.param(
            lambda x: F.linear(x, x[0, 0]),
            "the pullback rule for aten.linear.default does not cover its input 'select",
            id="an input",
        ),
        pytest.param(
            lambda x: x.sum(1, dtype=torch.float32),
            "the pullback rule for aten.sum.dim_IntList does not cover its arguments: "
            "got an unexpected keyword argument 'dtype'",
            id="an argument",
        ),
        pytest.param(
            lambda x: x - x.mean(0),
            "aten.mean.dim has no pullback here: one picture's explanation would depend on the others of its batch",
            id="a reason of its own",
        ),
    ],
)
def test_refusal_names_the_op_the_module_and_the_line(
    function: Callable[[Tensor], Tensor], complaint: str
) -> None:
    message = refusal(Nested(function))
    line = Function.forward.__code__.co_firstlineno + 1
    assert message.startswith(complaint)
    assert f"(module blocks.0.last, {__file__}:{line}: return self.function(x))" in message
    assert message.endswith("replace the op in the network, or add a rule to sptrace.compiler.pullback")


def test_refusal_at_the_top_level() -> None:
    assert "(module the network's top level, " in refusal(Op(lambda x: torch.lgamma(x)))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x, bias: bias.expand(x.shape[0], 5), id="the batch's size"),
        pytest.param(lambda x, bias: torch.zeros(x.shape[0], 1) + bias * x.shape[2], id="the image's sizes"),
    ],
)
def test_a_network_that_does_not_look_at_the_image_is_refused(body: Callable[..., Tensor]) -> None:
    assert "the network's output does not depend on the image" in refusal(Op(body, numbers(1, 5)))
