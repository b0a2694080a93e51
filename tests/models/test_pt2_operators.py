"""Which operators a file may name."""

import operator

import pytest
import torch

from sptrace.errors import SptraceError
from sptrace.models.pt2_operators import SIZE_FUNCTIONS, operator_named


@pytest.mark.parametrize(
    "name",
    [
        "conv2d.default",
        "add.Tensor",
        "add_.Tensor",
        "_softmax.default",
        "__and__.Tensor",
        "gelu.default",
        "sym_size.int",
    ],
)
def test_operators_of_aten(name: str) -> None:
    packet, overload = name.split(".")
    assert operator_named(f"torch.ops.aten.{name}") is getattr(getattr(torch.ops.aten, packet), overload)


@pytest.mark.parametrize(
    "name",
    [
        "torch.ops.aten.from_file.default",  # maps a file, or makes one
        "torch.ops.aten.save.default",
        "torch.ops.aten.warn.default",
        "torch.ops.aten.manual_seed.default",
        "torch.ops.aten.backward.default",
        "torch.ops.aten.set_.source_Storage_storage_offset.x",
        "torch.ops.aten._cudnn_init_dropout_state.default",
        "torch.ops.aten.add",
        "torch.ops.aten.add.nothing",
        "torch.ops.aten.__class__.__name__",
        "torch.ops.prim.Print.default",
        "torch.ops.torchvision.read_file.default",
        "torch.ops.aten.add.Tensor\n",
        "xtorch.ops.aten.add.Tensor",
        "aten.add.Tensor",
        "",
    ],
)
def test_all_else_is_refused(name: str) -> None:
    with pytest.raises(SptraceError, match="is none of ATen's") as caught:
        operator_named(name)
    assert "\n" not in str(caught.value)


def test_functions_of_sizes() -> None:
    assert SIZE_FUNCTIONS["_operator.floordiv"] is operator.floordiv
    assert "_operator.methodcaller" not in SIZE_FUNCTIONS
