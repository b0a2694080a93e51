from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_linear, numbers
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import Tensor, fx, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.passes import canonicalize_convolutions

FLATTEN = {"aten.flatten.using_ints": 1}


def check(convolution: nn.Module, expected: dict[str, int]) -> fx.GraphModule:
    """The convolution becomes the expected ops, and gives the same values."""
    network = small(lambda self, x: self.convolution(x), convolution=convolution)
    module = capture(network, images(1))
    assert canonicalize_convolutions(module) == 1
    assert ops(module) == FLATTEN | expected
    assert_same_values(module, network, tolerance=1e-6)
    return module


def test_1_valid() -> None:
    module = check(nn.Conv2d(3, 4, 3, stride=2, padding="valid"), {"aten.conv2d.default": 1})
    [convolution] = nodes(module, "aten.conv2d.default")
    assert convolution.args[3:] == ([2, 2], [0, 0], [1], 1)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_2_same_with_as_many_cells_before_as_after() -> None:
    convolution = nn.Conv2d(3, 6, (3, 4), padding="same", dilation=(3, 2), groups=3)
    [node] = nodes(check(convolution, {"aten.conv2d.default": 1}), "aten.conv2d.default")
    assert node.args[3:] == ([1, 1], [3, 3], [3, 2], 3)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_3_same_with_one_cell_more_behind() -> None:
    convolution = nn.Conv2d(3, 4, (4, 3), padding="same", bias=False)
    module = check(convolution, {"aten.constant_pad_nd.default": 1, "aten.conv2d.default": 1})
    [pad], [node] = nodes(module, "aten.constant_pad_nd.default"), nodes(module, "aten.conv2d.default")
    assert pad.args[1] == [0, 0, 0, 1]
    assert node.args[4] == [1, 1]


@pytest.mark.parametrize("bias", [True, False])
def test_4_output_padding_of_a_stride_or_more(bias: bool) -> None:
    transposed = nn.ConvTranspose2d(3, 4, 3, (2, 1), (2, 0), (1, 2), dilation=3, bias=bias)
    expected = {"aten.conv_transpose2d.input": 1, "aten.constant_pad_nd.default": 1}
    module = check(transposed, expected | ({"aten.reshape.default": 1, "aten.add.Tensor": 1} if bias else {}))
    [pad] = nodes(module, "aten.constant_pad_nd.default")
    assert pad.args[1] == [0, 2, -2, -1]


@pytest.mark.parametrize("kernel", [(5,), (2, 3), (2, 2, 2)], ids=["sequence", "image", "volume"])
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_every_number_of_dimensions(kernel: tuple[int, ...]) -> None:
    convolve: Any = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
    sizes = ((256,), (16, 16), (4, 8, 8))[len(kernel) - 1]
    network = small(
        lambda self, x: convolve(x.reshape(-1, 3, *sizes), self.weight, padding="same"),
        weight=torch.ones(2, 3, *kernel),
    )
    module = capture(network, images(1))
    assert canonicalize_convolutions(module) == 1
    assert not any(op.endswith(".padding") for op in ops(module))
    assert_same_values(module, network, tolerance=1e-6)


@pytest.mark.parametrize(
    "convolution",
    [nn.Conv2d(3, 4, 3, padding=1), nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1)],
    ids=["convolution", "transposed"],
)
def test_leaves_the_others_alone(convolution: nn.Module) -> None:
    module = capture(small(lambda self, x: self.convolution(x), convolution=convolution), images(1))
    before = ops(module)
    assert canonicalize_convolutions(module) == 0
    assert ops(module) == before


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_5_the_op_of_all_convolutions(rank: int, transposed: bool) -> None:
    """Towards PyTorch's own matrix, in float64."""

    def body(x: Tensor, weight: Tensor) -> Tensor:
        x = {1: x.flatten(2), 2: x, 3: x[:, :, None].expand(-1, -1, 3, -1, -1)}[rank]
        ones = [1] * rank
        padding = [2 if transposed else 1] * rank
        extra = [int(transposed)] * rank
        return torch.convolution(x, weight, None, [2] * rank, padding, ones, transposed, extra, 1)

    check_linear(Op(body, numbers(*((2, 3) if transposed else (3, 2)), *[3] * rank)), 2, 4, 5)
