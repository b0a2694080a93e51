"""What is explained is what the network computes, whatever it does to gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.explained import assert_gradient
from helpers.small_networks import images
from helpers.tails import Between, Tail, plain
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import sptrace


class Swish(Function):
    """Without memory for what is between, as in efficientnet_pytorch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        gate = torch.sigmoid(x)
        return cotangent * (gate * (1 + x * (1 - gate)))


class Reverse(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * cotangent, None


class Clamp(Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-0.2, 0.2)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return cotangent


class Detached(Function):
    """Its forward detaches, as it may."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.sin(x.detach()) * x.data

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 3 * cotangent


class Double(Function):
    """In place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> Tensor:
        return 5 * cotangent


FUNCTIONS: dict[type[Function], tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    Swish: (Swish.apply, lambda x: x * torch.sigmoid(x)),
    Reverse: (lambda x: torch.tanh(Reverse.apply(x, 0.5)), torch.tanh),
    Clamp: (Clamp.apply, lambda x: x.clamp(-0.2, 0.2)),
    Detached: (Detached.apply, lambda x: torch.sin(x) * x),
    Double: (lambda x: torch.tanh(Double.apply(x)), lambda x: torch.tanh(2 * x)),
}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_with_a_backward_of_their_own(function: type[Function]) -> None:
    between, wanted = FUNCTIONS[function]
    backward = function.backward
    with pytest.warns(sptrace.SptraceWarning, match=f"left out: the backward pass of {function.__name__};"):
        assert_gradient(Between(between), Between(wanted).double().logits)
    assert function.backward is backward
    x = torch.ones(1, requires_grad=True)
    with torch.enable_grad():
        (own,) = torch.autograd.grad(Swish.apply(x), x)
        (reversed_,) = torch.autograd.grad(Reverse.apply(x, 0.5), x)
    assert float(reversed_) == -0.5
    assert own > 0


def _hooked(kind: str) -> nn.Module:
    network = Tail()
    if kind == "full":
        network.conv.register_full_backward_hook(lambda module, given, _: (given[0] * 5,))
    elif kind == "before":
        network.conv.register_full_backward_pre_hook(lambda module, given: (given[0] * 5,))
    elif kind == "tensor":

        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            output.register_hook(lambda cotangent: 5 * cotangent)

        network.conv.register_forward_hook(hook)
    return network


@pytest.mark.parametrize("kind", ["full", "before", "tensor"])
def test_hooks_on_gradients(kind: str) -> None:
    with pytest.warns(sptrace.SptraceWarning, match="left out: .*hook"):
        assert_gradient(_hooked(kind), plain)


class Kept(Tail):
    def logits(self, image: Tensor) -> Tensor:
        kept = torch.tanh(self.conv(image))
        kept.retain_grad()
        answer: Tensor = self.fc(kept.mean((2, 3)))
        return answer


def test_retained_gradients() -> None:
    assert_gradient(Kept(), plain)


class WithoutGradients(Tail):
    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return self.logits(image)


class ForInference(Tail):
    @torch.inference_mode()
    def forward(self, image: Tensor) -> Tensor:
        return self.logits(image)


@pytest.mark.parametrize("kind", [WithoutGradients, ForInference])
def test_gradients_switched_off(kind: type[Tail]) -> None:
    network = kind()
    with pytest.warns(sptrace.SptraceWarning, match="left out: no_grad and inference_mode"):
        assert_gradient(network, plain)
    assert network(images(1)).is_inference() == (kind is ForInference)


class PartlyForInference(Tail):
    """What one branch gives counts as constant."""

    def logits(self, image: Tensor) -> Tensor:
        with torch.inference_mode():
            scale = self.conv(image).mean((1, 2, 3))[:, None].clone()
        return super().logits(image) * scale


def test_a_part_without_gradients_is_constant() -> None:
    twin = Tail().double()

    def wanted(image: Tensor) -> Tensor:
        return twin.logits(image) * twin.conv(image).mean((1, 2, 3))[:, None].detach()

    assert_gradient(PartlyForInference(), wanted)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    assert_gradient(Between(lambda x: checkpoint(torch.tanh, x, use_reentrant=reentrant)), plain)


def test_what_is_decoded_in_place() -> None:
    """PyTorch's own backward refuses it: sigmoid keeps its output, which is overwritten."""

    def decoded(x: Tensor) -> Tensor:
        y = x.sigmoid()
        y[:, :2] = (y[:, :2] * 2 - 0.5) * 8
        y[:, 2:4] = (y[:, 2:4] * 2) ** 2
        return y

    def wanted(x: Tensor) -> Tensor:
        y = x.sigmoid()
        return torch.cat([(y[:, :2] * 2 - 0.5) * 8, (y[:, 2:4] * 2) ** 2, y[:, 4:]], dim=1)

    assert_gradient(Between(decoded), Between(wanted).double().logits)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_a_mask_of_whole_numbers(dtype: torch.dtype) -> None:
    def masked(x: Tensor) -> Tensor:
        return torch.tanh(x) * (x > 0).to(dtype)

    assert_gradient(Between(masked), Between(masked).double().logits)
