from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.errors import UnsupportedError
from sptrace.passes import canonicalize_shapes

Body = Callable[[Tensor], Tensor]
FAMILY = ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze")


@pytest.mark.parametrize(
    ("body", "op", "shape"),
    [
        (lambda y: y.view(y.shape[0], 4, 196), "aten.view.default", [-1, 4, 196]),
        (lambda y: y.reshape(-1, 784), "aten.reshape.default", [-1, 784]),
        (lambda y: y.reshape(y.size(0), 28, -1), "aten.reshape.default", [-1, 28, 28]),
        (lambda y: y.flatten(2), "aten.flatten.using_ints", [-1, 4, 196]),
        (lambda y: y.unflatten(1, (2, 2)), "aten.unflatten.int", [-1, 2, 2, 14, 14]),
        (lambda y: y.unsqueeze(1), "aten.unsqueeze.default", [-1, 1, 4, 14, 14]),
        (lambda y: y.mean(1, True).squeeze(1), "aten.squeeze.dim", [-1, 14, 14]),
        (lambda y: y.mean((1, 2), True).squeeze((1, 2)), "aten.squeeze.dims", [-1, 14]),
        (lambda y: y.reshape(-1, 14, 14).reshape(-1, 784), "aten.reshape.default", [-1, 14, 14]),
        (lambda y: y.transpose(0, 1).reshape(4, -1).reshape(4, -1, 196)[0], "aten.reshape.default", [4, -1]),
    ],
)
def test_the_view_family_becomes_reshape(body: Body, op: str, shape: list[int]) -> None:
    network = small(lambda self, x: body(self.conv(x)), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    family = {name: count for name, count in ops(module).items() if name.split(".")[1] in FAMILY}
    assert op in family
    count = canonicalize_shapes(module)
    assert count == sum(family.values())
    assert shape in [node.args[1] for node in nodes(module, "aten.reshape.default")]
    assert {name for name in ops(module) if name.split(".")[1] in FAMILY} == {"aten.reshape.default"}
    assert_same_values(module, network)


def test_squeeze_of_every_dimension() -> None:
    """The batch must not be 1: squeeze would take it for a dimension to remove, then and only then."""
    network = small(lambda self, x: self.conv(x).mean((1, 2), True).squeeze(), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    canonicalize_shapes(module)
    assert [-1, 14] in [node.args[1] for node in nodes(module, "aten.reshape.default")]


def test_a_shape_that_stays_the_same_goes() -> None:
    network = small(lambda self, x: self.conv(x).flatten(1).flatten(1), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    assert ops(module)["aten.flatten.using_ints"] == 3
    assert canonicalize_shapes(module) == 3
    assert ops(module)["aten.reshape.default"] == 1
    assert_same_values(module, network)


def test_two_sizes_that_depend_on_the_batch_are_refused() -> None:
    """The pictures' products with one another, [N, N], in a single dimension."""

    def body(self: Any, x: Tensor) -> Tensor:
        rows = self.conv(x).flatten(1)
        return torch.matmul(rows, rows.t()).unsqueeze(2).sum(1)

    module = capture(small(body, conv=nn.Conv2d(3, 4, 3)), images(1))
    with pytest.raises(UnsupportedError, match="pictures of a batch are combined with each other"):
        canonicalize_shapes(module)
