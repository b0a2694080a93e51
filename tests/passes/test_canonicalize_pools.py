from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.compiler.graph.builder import shape
from sptrace.compiler.graph.sizes import BATCH
from sptrace.errors import UnsupportedError
from sptrace.passes import canonicalize_pools

FLATTEN = {"aten.flatten.using_ints": 1}


def check(pool: nn.Module, expected: dict[str, int], size: int = 16) -> torch.fx.GraphModule:
    """The pool becomes the expected ops, and gives the same values."""
    network = small(lambda self, x: self.pool(x), pool=pool)
    module = capture(network, images(1, size))
    assert canonicalize_pools(module) == 1
    assert ops(module) == FLATTEN | expected
    assert_same_values(module, network, tolerance=1e-6, size=size)
    return module


def test_1_the_average_of_everything() -> None:
    [mean] = nodes(check(nn.AdaptiveAvgPool2d(1), {"aten.mean.dim": 1}), "aten.mean.dim")
    assert mean.args[1:] == ([2, 3], True)
    assert shape(mean) == [BATCH, 3, 1, 1]


@pytest.mark.parametrize("size", [16, (16, None), (None, 16)])
def test_2_as_large_as_the_input(size: Any) -> None:
    check(nn.AdaptiveAvgPool2d(size), {})


@pytest.mark.parametrize(
    ("outputs", "window"), [((4, 8), [4, 2]), ((1, 4), [16, 4]), ((8, None), [2, 1]), (2, [8, 8])]
)
def test_3_a_divisor_of_the_input(outputs: Any, window: list[int]) -> None:
    module = check(nn.AdaptiveAvgPool2d(outputs), {"aten.avg_pool2d.default": 1})
    [pool] = nodes(module, "aten.avg_pool2d.default")
    assert pool.args[1:] == (window, window, [0, 0])


@pytest.mark.parametrize("outputs", [7, (3, 16), (4, 5), (20, 1), (17, 31)])
def test_4_any_other_size(outputs: Any) -> None:
    module = check(nn.AdaptiveAvgPool2d(outputs), {"aten.matmul.default": 2})
    constants = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    assert constants == {"averaging.rows", "averaging.columns"}


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        (nn.AvgPool2d(2), ([2, 2], [2, 2], [0, 0])),
        (nn.AvgPool2d((3, 2), stride=(1, 2)), ([3, 2], [1, 2], [0, 0])),
        (nn.AvgPool2d(3, 2, padding=1), ([3, 3], [2, 2], [1, 1])),
        (nn.AvgPool2d(2, count_include_pad=False), ([2, 2], [2, 2], [0, 0])),
        (nn.AvgPool2d(4, 4, ceil_mode=True), ([4, 4], [4, 4], [0, 0])),
    ],
)
def test_5_padded_cells_count(pool: nn.Module, options: tuple[list[int], ...]) -> None:
    module = check(pool, {"aten.avg_pool2d.default": 1})
    [call] = nodes(module, "aten.avg_pool2d.default")
    assert call.args[1:] == options
    assert not call.kwargs


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 15),
        (nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), 16),
        (nn.AvgPool2d((3, 5), (2, 3), padding=(1, 2), count_include_pad=False, ceil_mode=True), 17),
        (nn.AvgPool2d(5, 3, ceil_mode=True, padding=1, divisor_override=7), 17),
        (nn.AvgPool2d(3, 3, divisor_override=1), 16),
        (nn.AvgPool2d(4, 3, ceil_mode=True), 15),
        (nn.AvgPool2d(3, 4, ceil_mode=True, padding=1), 16),
    ],
)
def test_6_other_averages(pool: nn.Module, size: int) -> None:
    becomes = {"aten.constant_pad_nd.default": 1, "aten.avg_pool2d.default": 1, "aten.mul.Tensor": 1}
    module = check(pool, becomes, size)
    [call] = nodes(module, "aten.avg_pool2d.default")
    assert call.args[3] == [0, 0]


@pytest.mark.parametrize(
    ("pool", "options"),
    [
        (nn.MaxPool2d(2), ([2, 2], [2, 2], [0, 0], [1, 1], False)),
        (nn.MaxPool2d((3, 2), 1, (1, 0)), ([3, 2], [1, 1], [1, 0], [1, 1], False)),
        (nn.MaxPool2d(3, 2, dilation=2, ceil_mode=True), ([3, 3], [2, 2], [0, 0], [2, 2], True)),
    ],
)
def test_7_maximum(pool: nn.Module, options: tuple[object, ...]) -> None:
    module = check(pool, {"aten.max_pool2d.default": 1})
    [call] = nodes(module, "aten.max_pool2d.default")
    assert call.args[1:] == options
    assert not call.kwargs


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AdaptiveAvgPool2d((3, 5)),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.MaxPool2d(3, 2, 1),
    ],
)
def test_8_pictures_without_a_channel_dimension(pool: nn.Module) -> None:
    network = small(lambda self, x: self.pool(x.mean(1)), pool=pool)
    module = capture(network, images(1))
    assert canonicalize_pools(module) == 1
    assert ops(module)["aten.reshape.default"] == 2
    assert_same_values(module, network, tolerance=1e-6)


def test_pooling_over_the_batch_is_refused() -> None:
    def body(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x.permute(2, 3, 0, 1)).permute(2, 0, 1, 3)

    module = capture(small(body, pool=nn.AvgPool2d(3, 1, 1)), images(1))
    with pytest.raises(
        UnsupportedError, match=r"pictures of a batch are combined .*small_networks\.py"
    ) as caught:
        canonicalize_pools(module)
    assert "\n" not in str(caught.value)


def test_several_pools() -> None:
    def body(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.average(self.last(self.first(x)))

    network = small(
        body, first=nn.MaxPool2d(2), last=nn.AvgPool2d(3, 1, 1), average=nn.AdaptiveAvgPool2d((3, 1))
    )
    module = capture(network, images(1))
    assert canonicalize_pools(module) == 3
    assert (
        canonicalize_pools(module) == 2
    )  # again: max_pool2d and avg_pool2d in the form that they have already
    assert_same_values(module, network, tolerance=1e-6)
