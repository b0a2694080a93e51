from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers.small_networks import ops
from torch import Tensor, fx, nn

from sptrace.compiler.graph.builder import GraphBuilder, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.passes import flip_unit_stride_adjoints

aten = torch.ops.aten


def transposed(
    weight: Tensor,
    *,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
    dilation: tuple[int, ...] = (1, 1),
    groups: int = 1,
    output_padding: tuple[int, ...] = (0, 0),
    bias: Tensor | None = None,
) -> fx.GraphModule:
    """v -> the adjoint of a convolution with `weight`, as the pullback writes it."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    builder = GraphBuilder(module)
    v = module.graph.placeholder("v")
    record(v, Facts(without_data(len(weight), *[9] * len(stride), dtype=torch.float32)))
    options = (list(stride), list(padding), list(dilation), True, list(output_padding), groups)
    constants = [builder.constant("weight", weight), None if bias is None else builder.constant("bias", bias)]
    module.graph.output(builder.call(aten.convolution.default, v, *constants, *options))
    module.recompile()
    return module


def numbers(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def check(module: fx.GraphModule, outputs: int, rank: int = 2) -> None:
    """The pass applies, and the values stay what they are."""
    v = numbers(2, outputs, *[9] * rank)
    wanted = module(v)
    assert flip_unit_stride_adjoints(module) == 1
    module.graph.lint()
    module.recompile()
    [convolution] = [node for node in module.graph.nodes if node.target == aten.convolution.default]
    assert convolution.args[6] is False
    given = module(v)
    assert given.shape == wanted.shape
    assert (given - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert flip_unit_stride_adjoints(module) == 0


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("kernel", "dilation"), list(product([(3, 3), (2, 3), (5, 1)], [(1, 1), (2, 1)])))
def test_a_convolution_takes_its_place(
    kernel: tuple[int, int], dilation: tuple[int, int], groups: int
) -> None:
    reach = [spread * (cells - 1) for cells, spread in zip(kernel, dilation, strict=True)]
    for padding in {(0, 0), (reach[0] // 2, reach[1] // 2), (reach[0], reach[1])}:
        weight = numbers(8, 12 // groups, *kernel)
        check(transposed(weight, padding=padding, dilation=dilation, groups=groups), outputs=8)


def test_depthwise() -> None:
    """Groups of one channel need no transposition."""
    module = transposed(numbers(4, 1, 3, 3), padding=(1, 1), groups=4)
    check(module, outputs=4)
    assert ops(module) == {"aten.convolution.default": 1, "aten.flip.default": 1}


def test_kernel_of_one_cell() -> None:
    """Nothing to flip."""
    module = transposed(numbers(4, 6, 1, 1))
    check(module, outputs=4)
    assert ops(module) == {"aten.convolution.default": 1, "aten.transpose.int": 1}


def test_one_dimension() -> None:
    check(
        transposed(numbers(4, 6, 3), stride=(1,), padding=(1,), dilation=(2,), output_padding=(0,)), 4, rank=1
    )


def test_with_a_bias() -> None:
    check(transposed(numbers(4, 6, 3, 3), bias=numbers(6)), outputs=4)


@pytest.mark.parametrize(
    "module",
    [
        transposed(numbers(4, 6, 3, 3), stride=(2, 2)),
        transposed(numbers(4, 6, 3, 3), stride=(1, 2)),
        transposed(numbers(4, 6, 3, 3), padding=(1, 3)),
        transposed(numbers(4, 6, 3, 3), stride=(2, 2), output_padding=(1, 1)),
    ],
)
def test_declines(module: fx.GraphModule) -> None:
    """Other strides, and padding beyond d (k - 1), which would need a crop."""
    before = ops(module)
    assert flip_unit_stride_adjoints(module) == 0
    assert ops(module) == before


def test_the_convolutions_of_the_network_are_left_alone() -> None:
    module = fx.GraphModule(nn.Module(), fx.Graph())
    builder = GraphBuilder(module)
    x = module.graph.placeholder("x")
    record(x, Facts(without_data(3, 9, 9, dtype=torch.float32)))
    weight = builder.constant("weight", numbers(4, 3, 3, 3))
    options = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    module.graph.output(builder.call(aten.convolution.default, x, weight, None, *options))
    assert flip_unit_stride_adjoints(module) == 0
