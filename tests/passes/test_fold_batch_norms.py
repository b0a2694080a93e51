from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import Tensor, fx, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.builder import parameter
from sptrace.compiler.graph.facts import facts
from sptrace.errors import UnsupportedError
from sptrace.passes import fold_batch_norms

TOLERANCE = 1e-6
AFFINE = {"aten.mul.Tensor": 1, "aten.add.Tensor": 1}


def folded(network: nn.Module, count: int = 1) -> fx.GraphModule:
    module = capture(network, images(1))
    assert ops(module)["aten.batch_norm.default"] == count
    assert fold_batch_norms(module) == count
    assert ops(module)["aten.batch_norm.default"] == 0
    assert_same_values(module, network, tolerance=TOLERANCE)
    return module


# --- Case 1: into the convolution ---


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 6, 3),
        nn.Conv2d(3, 6, 3, bias=False),
        nn.Conv2d(3, 6, (3, 2), stride=2, padding=(1, 2), dilation=(1, 2), groups=3),
    ],
)
def test_1_into_the_convolution(conv: nn.Conv2d, affine: bool) -> None:
    network = small(
        lambda self, x: self.norm(self.conv(x)), conv=conv, norm=nn.BatchNorm2d(6, eps=0.1, affine=affine)
    )
    module = folded(network)
    assert ops(module) == {"aten.conv2d.default": 1, "aten.flatten.using_ints": 1}
    [call] = nodes(module, "aten.conv2d.default")
    assert facts(call).path == "conv"
    weight, bias = call.args[1:3]
    assert isinstance(weight, fx.Node)
    assert isinstance(bias, fx.Node)
    assert (weight.target, bias.target) == ("conv.folded_weight", "conv.folded_bias")
    assert parameter(module, weight).dtype == parameter(module, bias).dtype == torch.float32


def test_1_what_is_not_folded_into_is_no_longer_read() -> None:
    network = small(lambda self, x: self.norm(self.conv(x)), conv=nn.Conv2d(3, 6, 3), norm=nn.BatchNorm2d(6))
    constants = {node.target for node in folded(network).graph.nodes if node.op == "get_attr"}
    assert constants == {"conv.folded_weight", "conv.folded_bias"}


def test_1_a_convolution_that_is_called_twice() -> None:
    """Two calls with the same weights, two norms: each call gets weights of its own."""

    def body(self: Any, x: Tensor) -> Tensor:
        return self.one(self.conv(x)) * self.two(self.conv(x))

    network = small(body, conv=nn.Conv2d(3, 6, 3), one=nn.BatchNorm2d(6), two=nn.BatchNorm2d(6))
    module = folded(network, count=2)
    assert ops(module)["aten.conv2d.default"] == 2
    assert ops(module)["aten.add.Tensor"] == 0


def test_1_computed_in_float64() -> None:
    """A scale of about 1e-4 of a large bias: in float32 the difference bias - running_mean would lose four digits."""
    conv, norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
    network = small(lambda self, x: self.norm(self.conv(x)), conv=conv, norm=norm)
    with torch.no_grad():
        assert isinstance(conv.bias, Tensor)
        assert isinstance(norm.running_mean, Tensor)
        conv.bias += 1e4
        norm.running_mean += 1e4
    module = capture(network, images(1))
    fold_batch_norms(module)
    module.recompile()
    given, wanted = module(images(2)), network.double()(images(2).double())
    assert (given - wanted).abs().max() <= 1e-6 * wanted.abs().max()


# --- Case 2: as a map of its own ---


def test_2_the_convolution_is_read_elsewhere() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.cat([self.norm(y), y], 1)

    network = small(body, conv=nn.Conv2d(3, 6, 3), norm=nn.BatchNorm2d(6))
    module = folded(network)
    assert ops(module) == AFFINE | {
        "aten.conv2d.default": 1,
        "aten.cat.default": 1,
        "aten.flatten.using_ints": 1,
    }
    constants = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    assert constants == {"conv.weight", "conv.bias", "norm.scale", "norm.shift"}


@pytest.mark.parametrize(
    ("before", "norm"),
    [
        (lambda self, x: x, nn.BatchNorm2d(3)),
        (lambda self, x: torch.relu(x), nn.BatchNorm2d(3, affine=False)),
        (lambda self, x: x.flatten(2), nn.BatchNorm1d(3)),
        (lambda self, x: x.mean((2, 3)), nn.BatchNorm1d(3)),
        (lambda self, x: x[:, :, None], nn.BatchNorm3d(3)),
        (lambda self, x: F.conv_transpose2d(x, torch.ones(3, 3, 2, 2)), nn.BatchNorm2d(3)),
    ],
)
def test_2_after_anything_else(before: Any, norm: nn.Module) -> None:
    module = folded(small(lambda self, x: self.norm(before(self, x)), norm=norm))
    assert AFFINE.items() <= ops(module).items()


def test_2_weights_that_are_computed() -> None:
    """The weights of the convolution depend on the image: there is nothing to fold into."""

    def body(self: Any, x: Tensor) -> Tensor:
        weight = x.mean((0, 2, 3)).reshape(1, 3, 1, 1) + self.weight
        return self.norm(F.conv2d(x, weight))

    network = small(body, weight=torch.zeros(6, 3, 1, 1), norm=nn.BatchNorm2d(6))
    module = folded(network)
    assert ops(module)["aten.mul.Tensor"] == 1


# --- Refusals ---


def no_running_statistics(self: Any, x: Tensor) -> Tensor:
    return self.norm(x)


def asked_for_batch_statistics(self: Any, x: Tensor) -> Tensor:
    return F.batch_norm(x, torch.zeros(3), torch.ones(3), training=True)


@pytest.mark.parametrize("body", [no_running_statistics, asked_for_batch_statistics])
def test_statistics_of_the_batch_are_refused(body: Any) -> None:
    network = small(body, norm=nn.BatchNorm2d(3, track_running_stats=False))
    module = capture(network, images(1))
    with pytest.raises(
        UnsupportedError, match=r"^the batch norm .* uses the statistics of its batch"
    ) as caught:
        fold_batch_norms(module)
    assert "\n" not in str(caught.value)
    assert "use running statistics" in str(caught.value)
    if body is no_running_statistics:
        assert "'norm'" in str(caught.value)
