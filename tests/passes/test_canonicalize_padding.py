from __future__ import annotations

import pytest
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, nodes, ops, small
from torch import fx, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.passes import canonicalize_padding

FLATTEN = {"aten.flatten.using_ints": 1}


def check(
    widths: tuple[int, ...], mode: str, expected: dict[str, int], number: float | None = None
) -> fx.GraphModule:
    """The padding becomes the expected ops, and gives the same values."""
    network = small(lambda self, x: F.pad(x, (*widths, 0, 0), mode, number))
    module = capture(network, images(1))
    assert canonicalize_padding(module) == 1
    assert ops(module) == FLATTEN | expected
    assert_same_values(module, network)
    return module


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_1_nothing_to_pad(mode: str) -> None:
    check((0, 0), mode, {})


@pytest.mark.parametrize("number", [None, 2.5])
def test_2_a_number(number: float | None) -> None:
    module = check((1, -2), "constant", {"aten.constant_pad_nd.default": 1}, number)
    [pad] = nodes(module, "aten.constant_pad_nd.default")
    assert pad.args[1:] == ([1, -2, 0, 0], number or 0.0)


@pytest.mark.parametrize("widths", [(2, 3), (16, 1)], ids=str)
def test_3_circular(widths: tuple[int, int]) -> None:
    check(widths, "circular", {"aten.slice.Tensor": 2, "aten.cat.default": 1})


def test_3_circular_wraps_what_cropping_leaves() -> None:
    check((-3, 2), "circular", {"aten.slice.Tensor": 2, "aten.cat.default": 1})


def test_4_reflect() -> None:
    check((2, 15), "reflect", {"aten.slice.Tensor": 2, "aten.flip.default": 2, "aten.cat.default": 1})


def test_5_replicate() -> None:
    check((1, 20), "replicate", {"aten.slice.Tensor": 2, "aten.expand.default": 2, "aten.cat.default": 1})


@pytest.mark.parametrize(("mode", "op"), [("reflect", "flip"), ("replicate", "expand")])
def test_4_and_5_crop_what_padding_made(mode: str, op: str) -> None:
    check((-14, 4), mode, {"aten.slice.Tensor": 2, f"aten.{op}.default": 1, "aten.cat.default": 1})
    check((-1, -2), mode, {"aten.slice.Tensor": 1})


def test_padding_of_a_convolution() -> None:
    network = small(lambda self, x: self.conv(x), conv=nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"))
    module = capture(network, images(1))
    assert canonicalize_padding(module) == 1
    assert "aten.pad.default" not in ops(module)
    assert_same_values(module, network, tolerance=1e-6)
