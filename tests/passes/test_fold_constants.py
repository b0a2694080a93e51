from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.builder import parameter
from sptrace.errors import UnsupportedError
from sptrace.passes import fold_constants, functionalize

Body = Callable[[Any, Tensor], Tensor]


def table(self: Any, x: Tensor) -> Tensor:
    """Relative positions, as attention looks them up."""
    index = (torch.arange(4)[:, None] - torch.arange(4)[None]) + 3
    return x[..., :4, :4] + self.weight[index]


def standardized_weight(self: Any, x: Tensor) -> Tensor:
    weight = self.conv.weight
    weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / weight.std((1, 2, 3), keepdim=True)
    return torch.conv2d(x, weight)


def of_the_shape_of_the_image(self: Any, x: Tensor) -> Tensor:
    return x + torch.zeros_like(x[0]) + torch.ones_like(x) * 2 + x.new_full((3, 1, 1), 5.0)


def filled_piece_by_piece(self: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(1, 16, 16)
    for number, rows in enumerate((slice(0, 4), slice(4, 9), slice(9, 16))):
        mask[:, rows] = number
    mask[:, :, 3:] += 1
    return x * (mask - mask.transpose(1, 2))


def read_between_two_writes(self: Any, x: Tensor) -> Tensor:
    counter = torch.ones(3, 1, 1)
    x = x * counter
    counter += 1
    x = x * counter + counter
    counter[1] = 7
    return x * counter


def as_many_as_pictures(self: Any, x: Tensor) -> Tensor:
    weights = torch.softmax(torch.arange(3.0), 0).expand(x.shape[0], 3)
    return x * weights[:, :, None, None]


@pytest.mark.parametrize(
    "body",
    [
        table,
        standardized_weight,
        of_the_shape_of_the_image,
        filled_piece_by_piece,
        read_between_two_writes,
        as_many_as_pictures,
    ],
)
def test_nothing_of_it_is_computed_at_run_time(body: Body) -> None:
    network = small(body, conv=nn.Conv2d(3, 4, 3), weight=torch.linspace(-1, 1, 7))
    module = capture(network, images(1))
    assert fold_constants(module) > 0
    assert ops(module).keys() <= {
        "aten.add.Tensor",
        "aten.mul.Tensor",
        "aten.conv2d.default",
        "aten.expand.default",
        "aten.sym_size.int",
        "<built-in function mul>",
        "aten.select.int",
        "aten.slice.Tensor",
        "aten.flatten.using_ints",
    }
    assert_same_values(module, network)


def test_several_readers_share_one_constant() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        mask = torch.ones(16, 16).tril()
        return (x * mask + mask) * mask

    network = small(body)
    module = capture(network, images(1))
    fold_constants(module)
    assert len({node.target for node in module.graph.nodes if node.op == "get_attr"}) == 1
    assert_same_values(module, network)


def test_a_constant_for_every_picture_is_stored_for_one() -> None:
    network = small(lambda self, x: x + torch.ones(x.shape[0], 3, 1, 1).cumsum(1))
    module = capture(network, images(1))
    fold_constants(module)
    module.graph.eliminate_dead_code()
    (kept,) = (node for node in module.graph.nodes if node.op == "get_attr")
    assert parameter(module, kept).flatten().tolist() == [1, 2, 3]
    assert len(nodes(module, "aten.expand.default")) == 1
    assert_same_values(module, network)


def test_what_differs_between_pictures_stays() -> None:
    network = small(lambda self, x: x * torch.arange(x.shape[0]).reshape(-1, 1, 1, 1))
    module = capture(network, images(1))
    fold_constants(module)
    assert nodes(module, "aten.arange.default")
    assert_same_values(module, network)


def test_random_numbers_stay() -> None:
    module = capture(small(lambda self, x: x + torch.rand(16)), images(1))
    fold_constants(module)
    assert nodes(module, "aten.rand.default")


def filled_with_the_number_of_pictures(self: Any, x: Tensor) -> Tensor:
    return x * torch.zeros(1).fill_(x.shape[0])


def its_own_buffer(self: Any, x: Tensor) -> Tensor:
    self.calls.add_(1)
    return x * self.calls


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (filled_with_the_number_of_pictures, "the number of pictures is computed with"),
        (its_own_buffer, "depends on its 'calls', which forward changes"),
    ],
)
def test_writes_that_no_constant_can_stand_for_are_refused(body: Body, complaint: str) -> None:
    def prepare() -> None:
        module = capture(small(body, calls=torch.zeros(1)), images(1))
        fold_constants(module)
        functionalize(module)

    with pytest.raises(UnsupportedError, match=complaint):
        prepare()
