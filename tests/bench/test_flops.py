from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import sptrace
from sptrace.bench.flops import gflop


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    ).eval()


def counted(program: str, batch: int = 1, **options: object) -> float:
    compiled = sptrace.compile(network(), 0.1 * torch.ones(1, 3, 16, 16), program=program, **options)
    found = gflop(compiled.onnx_model, batch)
    assert found is not None
    return found


@pytest.mark.parametrize("batch", [1, 4])
def test_as_torch_counts_forward_and_backward(batch: int) -> None:
    image = torch.ones(batch, 3, 16, 16, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        network().requires_grad_(False)(image)[:, 0].sum().backward()
    assert counted("soft_pullback", batch) == pytest.approx(counter.get_total_flops() / 1e9)


def test_by_hand() -> None:
    """Multiplications and additions of the three layers, there and back."""
    macs = 8 * 8 * 8 * 3 * 9 + 8 * 8 * 8 * 4 * 9 + 512 * 5
    assert counted("soft_pullback") == pytest.approx(2 * 2 * macs / 1e9)


def test_a_loop_counts_as_often_as_it_runs() -> None:
    once = counted("soft_pullback")
    assert counted("pullback_ascent", steps=4) == pytest.approx(4 * once)
    # One round more is for the image itself.
    assert counted("smooth_pullback", samples=4) == pytest.approx(5 * once)


def test_unknown_shapes_are_not_guessed() -> None:
    from onnx import TensorProto, helper

    node = helper.make_node("MatMul", ["image", "image"], ["y"])
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, None])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, None])
    model = helper.make_model(helper.make_graph([node], "unknown", [image], [result]))
    assert gflop(model.SerializeToString(), 1) is None
