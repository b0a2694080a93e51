from __future__ import annotations

from itertools import product

import pytest
import torch
from helpers.rule_checks import numbers
from helpers.small_networks import ops
from torch import Tensor, fx, nn

from sptrace.compiler.graph.builder import GraphBuilder, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.passes import split_strided_adjoints

aten = torch.ops.aten
Pair = tuple[int, int]
SIZE = (5, 4)


def transposed(
    weight: Tensor,
    *,
    stride: Pair = (2, 2),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    output_padding: Pair = (0, 0),
    crop: tuple[int, int, int, int] | None = None,
) -> fx.GraphModule:
    """v -> the adjoint of a convolution with `weight`, cut to rows crop[0]:crop[1] and columns crop[2]:crop[3]."""
    module = fx.GraphModule(nn.Module(), fx.Graph())
    builder = GraphBuilder(module)
    v = module.graph.placeholder("v")
    record(v, Facts(without_data(len(weight), *SIZE, dtype=torch.float32)))
    options = (list(stride), list(padding), list(dilation), True, list(output_padding), groups)
    result = builder.call(aten.convolution.default, v, builder.constant("weight", weight), None, *options)
    if crop is not None:
        result = builder.call(aten.slice.Tensor, result, 2, crop[0], crop[1])
        result = builder.call(aten.slice.Tensor, result, 3, crop[2], crop[3], 1)
    module.graph.output(result)
    module.recompile()
    return module


def check(module: fx.GraphModule, channels: int) -> None:
    """The pass applies, no strided adjoint is left, and the values stay what they are."""
    v = numbers(2, channels, *SIZE)
    wanted = module(v)
    assert split_strided_adjoints(module) == 1
    module.graph.lint()
    module.recompile()
    left = [node for node in module.graph.nodes if node.target == aten.convolution.default]
    assert left
    assert not any(node.args[6] or set(node.args[3]) != {1} for node in left)
    given = module(v)
    assert given.shape == wanted.shape
    assert (given - wanted).abs().max() <= 1e-6 * wanted.abs().max()
    assert split_strided_adjoints(module) == 0


KERNELS = [
    ((3, 3), (2, 2)),
    ((5, 5), (2, 2)),
    ((2, 2), (2, 2)),
    ((3, 4), (3, 1)),
    ((4, 2), (1, 2)),
    ((7, 3), (2, 2)),
]


@pytest.mark.parametrize(("kernel", "stride"), KERNELS)
@pytest.mark.parametrize("depthwise", [True, False])
def test_phases(kernel: Pair, stride: Pair, depthwise: bool) -> None:
    weight = numbers(16, 1 if depthwise else 24, *kernel)
    for padding in product(*(sorted({0, (cells - 1) // 2, cells - 1}) for cells in kernel)):
        for output_padding in product(*(range(step) for step in stride)):
            module = transposed(
                weight,
                stride=stride,
                padding=(padding[0], padding[1]),
                output_padding=(output_padding[0], output_padding[1]),
                groups=16 if depthwise else 1,
            )
            check(module, 16)


@pytest.mark.parametrize("crop", [(0, 10, 0, 8), (1, 11, 1, 9), (1, 10, 0, 9), (2, 3, 3, 7)])
def test_what_is_cut_off_is_not_computed(crop: tuple[int, int, int, int]) -> None:
    """As after TensorFlow's padding, which is not the same on both sides."""
    module = transposed(numbers(16, 1, 3, 3), groups=16, crop=crop)
    check(module, 16)
    assert ops(module)["aten.slice.Tensor"] <= 8 + 2  # of weights, and of the odd row and column too many


def test_a_slice_that_is_not_alone_stays() -> None:
    module = transposed(numbers(16, 1, 3, 3), groups=16, crop=(1, 11, 1, 9))
    output = next(node for node in module.graph.nodes if node.op == "output")
    whole = next(node for node in module.graph.nodes if node.target == aten.convolution.default)
    output.args = ((output.args[0], whole),)
    module.recompile()
    v = numbers(2, 16, *SIZE)
    wanted = module(v)
    assert split_strided_adjoints(module) == 1
    module.recompile()
    for first, second in zip(module(v), wanted, strict=True):
        assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        transposed(numbers(16, 3, 7, 7), padding=(3, 3)),
        transposed(numbers(8, 16, 3, 3)),
        transposed(numbers(16, 16, 1, 1)),
        transposed(numbers(16, 16, 3, 3), stride=(1, 1)),
        transposed(numbers(16, 16, 3, 3), stride=(4, 1)),
        transposed(numbers(16, 16, 3, 3), stride=(3, 3)),
        transposed(numbers(16, 16, 3, 3), dilation=(2, 1)),
        transposed(numbers(16, 8, 3, 3), groups=2),
    ],
    ids=[
        "towards the picture",
        "few channels",
        "one cell",
        "no stride",
        "gaps",
        "many phases",
        "dilation",
        "groups",
    ],
)
def test_declines(module: fx.GraphModule) -> None:
    before = ops(module)
    assert split_strided_adjoints(module) == 0
    assert ops(module) == before
