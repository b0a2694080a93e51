from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, ops, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.errors import UnsupportedError
from sptrace.passes import functionalize, remove_identities


@pytest.mark.parametrize(
    ("identity", "op"),
    [
        (nn.Dropout(0.5), "aten.dropout.default"),
        (nn.Dropout2d(0.5), "aten.feature_dropout.default"),
        (nn.AlphaDropout(0.5), "aten.alpha_dropout.default"),
        (nn.FeatureAlphaDropout(0.5), "aten.feature_alpha_dropout.default"),
        (lambda x: x.transpose(2, 3).contiguous(), "aten.contiguous.default"),
        (lambda x: x.clone(), "aten.clone.default"),
    ],
)
def test_identities_are_removed(identity: Any, op: str) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return torch.relu(identity(self.conv(identity(x))))

    if isinstance(identity, nn.Module):
        identity.eval()
    network = small(body, conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    before = ops(module)
    assert before[op] == 2
    assert remove_identities(module) == 2
    del before[op]
    assert ops(module) == before
    assert_same_values(module, network)


@pytest.mark.parametrize("whole", [lambda x: x[:, :], lambda x: x[:, 0:4]])
def test_slices_that_take_all_are_removed(whole: Any) -> None:
    network = small(lambda self, x: torch.relu(whole(self.conv(x))), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    assert ops(module)["aten.slice.Tensor"] >= 1
    remove_identities(module)
    assert ops(module)["aten.slice.Tensor"] == 0
    assert_same_values(module, network)


@pytest.mark.parametrize(
    "part",
    [lambda x: x[:, 1:], lambda x: x[:, :3], lambda x: x[:, ::2], lambda x: x[:, :-1], lambda x: x[:, -4:]],
)
def test_other_slices_stay(part: Any) -> None:
    network = small(lambda self, x: torch.relu(part(self.conv(x))), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    remove_identities(module)
    assert ops(module)["aten.slice.Tensor"] >= 1
    assert_same_values(module, network)


def test_a_constant_of_the_code_needs_no_copy() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return self.conv(x) * torch.tensor([2.0])

    network = small(body, conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    assert remove_identities(module) == ops(capture(network, images(1)))["aten.lift_fresh_copy.default"]
    assert set(ops(module)) <= {
        "aten.conv2d.default",
        "aten.mul.Tensor",
        "aten.detach.default",
        "aten.flatten.using_ints",
    }
    assert_same_values(module, network)


def test_in_place_dropout() -> None:
    network = small(
        lambda self, x: self.drop(self.conv(x)), conv=nn.Conv2d(3, 4, 3), drop=nn.Dropout(0.5, True)
    )
    module = capture(network, images(1))
    assert functionalize(module) == 1
    assert remove_identities(module) == 1
    assert_same_values(module, network)


def test_nothing_to_do() -> None:
    network = small(lambda self, x: self.conv(x).relu(), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    before = ops(module)
    assert remove_identities(module) == 0
    assert ops(module) == before


@pytest.mark.parametrize("drop", [F.dropout, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout])
def test_active_dropout_is_refused(drop: Any) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return drop(self.conv(x), 0.5, True)

    module = capture(small(body, conv=nn.Conv2d(3, 4, 3)), images(1))
    with pytest.raises(UnsupportedError, match=r"^dropout is active .*small_networks\.py:\d+") as caught:
        remove_identities(module)
    assert "\n" not in str(caught.value)
    assert "call .eval()" in str(caught.value)
