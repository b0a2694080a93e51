from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.small_networks import assert_same_values, images, ops, small
from torch import Tensor, nn

from sptrace.compiler.capture.from_torch import capture
from sptrace.errors import UnsupportedError
from sptrace.passes import functionalize

Body = Callable[[Any, Tensor], Tensor]


def relu_(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    return torch.relu_(y) + 1


def relu_module(self: Any, x: Tensor) -> Tensor:
    return F.relu(self.conv(x), inplace=True)


def result_not_used(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.clamp_(min=0)
    return y * y


def value_read_before(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    before = y * 2
    y += 1
    return before * y


def several_in_a_row(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.mul_(2).add_(0.5)
    y -= 1
    return F.hardtanh_(y) + y


def on_a_view_alone(self: Any, x: Tensor) -> Tensor:
    return self.conv(x).flatten(2).relu_()


def view_taken_afterwards(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.relu_()
    flat = y.flatten(2)
    return flat * flat


def view_of_which_only_the_size_is_read(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(2)
    y.relu_()
    return y.reshape(flat.shape[0], -1)


def residual(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y += self.other(x)
    return torch.relu_(y)


def on_the_image(self: Any, x: Tensor) -> Tensor:
    x.mul_(2)
    return self.conv(x)


def on_a_copy(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = y.clone().relu_()
    return y * z


def on_the_output_of_dropout(self: Any, x: Tensor) -> Tensor:
    """In eval mode dropout returns its very input."""
    y = self.conv(x)
    z = F.dropout(y, training=False)
    z += 1
    return y * z


@pytest.mark.parametrize(
    ("body", "count"),
    [
        (relu_, 1),
        (relu_module, 1),
        (result_not_used, 1),
        (value_read_before, 1),
        (several_in_a_row, 4),
        (on_a_view_alone, 1),
        (view_taken_afterwards, 1),
        (view_of_which_only_the_size_is_read, 1),
        (residual, 2),
        (on_the_image, 1),
        (on_a_copy, 1),
        (on_the_output_of_dropout, 1),
    ],
)
def test_the_functional_form_takes_its_place(body: Body, count: int) -> None:
    network = small(body, conv=nn.Conv2d(3, 4, 3), other=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    before = ops(module)
    assert sum(number for op, number in before.items() if op.split(".")[1].endswith("_")) == count
    assert functionalize(module) == count
    expected = {op: number for op, number in before.items() if not op.split(".")[1].endswith("_")}
    for op, number in before.items():
        name, overload = op.removeprefix("aten.").split(".")
        if name.endswith("_"):
            functional = f"aten.{name.removesuffix('_')}.{overload}"
            expected[functional] = expected.get(functional, 0) + number
    assert ops(module) == expected
    assert_same_values(module, network)


def test_the_image_is_left_alone() -> None:
    module = capture(small(on_the_image, conv=nn.Conv2d(3, 4, 3)), images(1))
    functionalize(module)
    module.recompile()
    image = images(2)
    module(image)
    assert torch.equal(image, images(2))


def test_nothing_to_do() -> None:
    network = small(lambda self, x: self.conv(x).relu(), conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    before = ops(module)
    assert functionalize(module) == 0
    assert ops(module) == before


def base_read_later(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.flatten(2).relu_()
    return y


def base_of_a_base_read_later(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.flatten(2).flatten(1).relu_()
    return y


def a_part_is_assigned(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, 0] = 0.5
    return y


def a_stretch_is_changed(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, 1:, -5:, :3].mul_(3)
    return y


def the_rest_is_read_before_and_after(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    before = y[:, 2:] * 2
    y[:, :2] = y[:, 2:] + 1
    return y * before.repeat(1, 2, 1, 1)


def through_transposes(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.transpose(1, 2).permute(0, 2, 3, 1)[:, 0].relu_()
    return y


def the_part_is_read_too(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    part = y[:, 0]
    part += 1
    return y * part[:, None]


def one_part_after_the_other(self: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(self.conv(x))
    for channel in range(4):
        y[:, channel] = x[:, channel % 3, 1:-1, 1:-1] * (channel + 1)
    y[:, :, 3] = 0
    return y


def broadcast(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, 1:3] = x[:, :1, 1:-1, 1:-1]
    return y


@pytest.mark.parametrize(
    "body",
    [
        base_read_later,
        base_of_a_base_read_later,
        a_part_is_assigned,
        a_stretch_is_changed,
        the_rest_is_read_before_and_after,
        through_transposes,
        the_part_is_read_too,
        one_part_after_the_other,
        broadcast,
    ],
)
def test_what_is_written_to_a_part_is_seen_in_the_whole(body: Body) -> None:
    network = small(body, conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    functionalize(module)
    assert not [op for op in ops(module) if op.split(".")[1].endswith("_")]
    assert_same_values(module, network)


def every_second_row(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, :, ::2].relu_()
    return y


def the_whole_is_read_through_another_view(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(1)
    y[:, 1].relu_()
    return flat


def view_read_later(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(2)
    y.relu_()
    return flat


def view_of_a_view_read_later(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    flat = y.flatten(2).flatten(1)
    y.relu_()
    return flat


def another_view_read_later(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    one, two = y.flatten(2), y.flatten(2)
    one.relu_()
    return two


def one_of_several_views(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    one, _ = y.chunk(2, 1)
    one.relu_()
    return y


def second_write(self: Any, x: Tensor) -> Tensor:
    """The first write is harmless, the second is seen through a view of the first's result."""
    y = self.conv(x)
    y.relu_()
    flat = y.flatten(2)
    y.add_(1)
    return flat


def through_another_part(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    low, high = y[:, :3], y[:, 1:]
    low.mul_(2)
    high.add_(1)
    return low * high


def diagonal(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.diagonal(dim1=2, dim2=3).mul_(2)
    return y


def turned_in_place(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = y[:, 1:3]
    y.transpose_(2, 3)
    z.mul_(2)
    return y.unsqueeze_(1).squeeze_(1)


def given_a_place(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    z = torch.zeros_like(y)
    torch.mul(y, 2, out=z)
    return z + y


def set_to_zero(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, 1].zero_()
    return y


@pytest.mark.parametrize(
    "body",
    [
        view_read_later,
        view_of_a_view_read_later,
        another_view_read_later,
        every_second_row,
        the_whole_is_read_through_another_view,
        one_of_several_views,
        second_write,
        through_another_part,
        diagonal,
        turned_in_place,
        given_a_place,
        set_to_zero,
    ],
)
def test_what_is_written_is_seen_under_every_name(body: Body) -> None:
    network = small(body, conv=nn.Conv2d(3, 4, 3))
    module = capture(network, images(1))
    functionalize(module)
    assert not [op for op in ops(module) if op.split(".")[1].endswith("_") or op.endswith(".out")]
    assert_same_values(module, network)


def count_calls(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.conv(x)


def keep_the_mean(self: Any, x: Tensor) -> Tensor:
    self.mean.mul_(0.9).add_(x.mean((0, 2, 3)) * 0.1)
    return self.conv(x)


def keep_the_last(self: Any, x: Tensor) -> Tensor:
    """What is read was written in the same call."""
    self.mean.copy_(torch.ones(3))
    return self.conv(x * self.mean[:, None, None])


def without_change(self: Any, x: Tensor) -> Tensor:
    self.calls.clamp_(-1, 1)
    return self.conv(x) * (self.calls + 2)


@pytest.mark.parametrize("body", [count_calls, keep_the_mean, keep_the_last, without_change])
def test_what_the_network_keeps_for_itself_is_dropped(body: Body) -> None:
    network = small(body, conv=nn.Conv2d(3, 4, 3), calls=torch.zeros(1), mean=torch.zeros(3))
    module = capture(network, images(1))
    functionalize(module)
    assert not [op for op in ops(module) if op.split(".")[1].endswith("_")]
    state = {name: data.clone() for name, data in network.named_buffers()}
    assert_same_values(module, network)
    network.load_state_dict(state, strict=False)


# --- Refusals ---


def windows(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.unfold(2, 2, 1)[..., 0].zero_()
    return y


def detached(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y.data[:, 0] = 0
    return y


@pytest.mark.parametrize("body", [windows, detached])
def test_memory_that_is_read_under_another_name_is_refused(body: Body) -> None:
    module = capture(small(body, conv=nn.Conv2d(3, 4, 3)), images(1))
    with pytest.raises(UnsupportedError, match=r"^the in-place op aten\.\w+_\.\w+ changes memory") as caught:
        functionalize(module)
    message = str(caught.value)
    assert "\n" not in message
    assert "is read again as" in message
    assert "small_networks.py:" in message  # torch.export records lines of `forward` only
    assert message.endswith("write the functional form in the network")


def test_a_network_that_overwrites_its_own_constant_is_refused() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.conv(x) * self.calls

    module = capture(small(body, conv=nn.Conv2d(3, 4, 3), calls=torch.zeros(1)), images(1))
    with pytest.raises(
        UnsupportedError, match=r"^the network's answer depends on its 'calls', which forward changes"
    ):
        functionalize(module)


def test_an_op_without_a_functional_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    module = capture(small(relu_, conv=nn.Conv2d(3, 4, 3)), images(1))
    monkeypatch.setattr(torch.ops.aten.relu, "overloads", lambda: [])
    with pytest.raises(
        UnsupportedError, match=r"^the in-place op aten\.relu_\.default has no functional form"
    ):
        functionalize(module)
