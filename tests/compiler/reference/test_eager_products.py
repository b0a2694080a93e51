"""Gates written out as products, against autograd of what they mean once that is said in so many words."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.small_networks import images, small
from torch import Tensor, nn

from sptrace.compiler.reference.eager import reference

Function = Callable[[Tensor], Tensor]

TAU = 1.7
RULES = {"silu": ("gate", TAU), "quick_gelu": ("gate", TAU), "attention": ("value", TAU)}


def assert_same_pullback(network: Function, meaning: Function) -> None:
    """The reference of the one is the gradient of the other."""
    image, target = images(2, 8).double(), torch.tensor([1, 6])
    module: nn.Module = small(lambda self, x: network(x))
    attribution, logits, _ = reference(module, image, target, rules=RULES)
    leaf = image.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(meaning(leaf).flatten(1)[[0, 1], target].sum(), leaf)
    assert wanted.abs().max() > 0
    torch.testing.assert_close(attribution, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logits, module(image), rtol=1e-10, atol=1e-12)


def gated(sharpness: float) -> Function:
    """The gate alone carries the cotangent."""
    return lambda x: 2 * x * torch.sigmoid(sharpness * 2 * x.detach() / TAU)


def test_x_sigmoid_x() -> None:
    assert_same_pullback(lambda x: (y := 2 * x) * y.sigmoid(), gated(1))
    assert_same_pullback(lambda x: torch.sigmoid(y := 2 * x) * y, gated(1))
    assert_same_pullback(lambda x: (y := 2 * x) * torch.sigmoid(1.702 * y), gated(1.702))
    assert_same_pullback(lambda x: (2 * x) * x.sigmoid(), lambda x: 2 * x * torch.sigmoid(x.detach() / TAU))
    assert_same_pullback(
        lambda x: torch.mul((y := x * 2) * 3, 1) * 0 + y * torch.sigmoid(y * 0.5), gated(0.5)
    )


def changed_after_its_sigmoid(x: Tensor) -> Tensor:
    y = 2 * x
    gate = y.sigmoid()
    y += 1
    return y * gate


def changed_multiple(x: Tensor) -> Tensor:
    y = 2 * x
    half = y * 0.5
    half += 1
    return y * half.sigmoid()


@pytest.mark.parametrize(
    "network",
    [
        lambda x: (2 * x) * (x + 1).sigmoid(),
        lambda x: (y := (2 * x).sigmoid_()) * y,
        changed_after_its_sigmoid,
        changed_multiple,
    ],
)
def test_other_products_with_a_sigmoid_are_ordinary(network: Function) -> None:
    assert_same_pullback(network, lambda x: network(x.clone()))


def matrix(x: Tensor, tau: float = 1.0) -> Tensor:
    return torch.softmax(x @ x.flip(2).transpose(-2, -1) / tau, -1)


def frozen(x: Tensor) -> Tensor:
    return matrix(x, TAU).detach()


@pytest.mark.parametrize(
    ("network", "meaning"),
    [
        pytest.param(lambda x: matrix(x) @ (3 * x), lambda x: frozen(x) @ (3 * x), id="matmul"),
        pytest.param(
            lambda x: (3 * x) @ matrix(x).transpose(2, 3), lambda x: 3 * x @ frozen(x).mT, id="on the right"
        ),
        pytest.param(
            lambda x: torch.einsum("ncij,ncjk->ncik", matrix(x), 3 * x),
            lambda x: frozen(x) @ (3 * x),
            id="einsum",
        ),
        pytest.param(
            lambda x: torch.einsum("ncij,ncjk->ncik", [matrix(x), 3 * x]),
            lambda x: frozen(x) @ (3 * x),
            id="einsum of a list",
        ),
        pytest.param(
            lambda x: torch.cat([part @ (3 * x) for part in matrix(x).chunk(2, 2)], 2),
            lambda x: frozen(x) @ (3 * x),
            id="in two parts",
        ),
        pytest.param(
            lambda x: torch.stack([part @ (3 * x[:, 0]) for part in matrix(x).unbind(1)], 1),
            lambda x: frozen(x) @ (3 * x[:, :1]),
            id="head by head",
        ),
        pytest.param(
            lambda x: matrix(x).select(1, 2) @ (3 * x[:, 0]),
            lambda x: frozen(x)[:, 2] @ (3 * x[:, 0]),
            id="one head",
        ),
    ],
)
def test_attention_written_out(network: Function, meaning: Function) -> None:
    assert_same_pullback(network, meaning)


def changed_matrix(x: Tensor) -> Tensor:
    weights = matrix(x).clone()
    weights *= 2
    return weights @ (3 * x)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(changed_matrix, id="a matrix changed in place"),
        pytest.param(lambda x: matrix(x) * 2 @ (3 * x), id="a matrix times a number"),
        pytest.param(lambda x: matrix(x) @ torch.ones(8, 8, dtype=x.dtype), id="of a constant"),
        pytest.param(lambda x: matrix(x) @ matrix(2 * x), id="of two matrices"),
        pytest.param(lambda x: matrix(x.detach()) @ (3 * x), id="a matrix without a cotangent"),
    ],
)
def test_other_products_with_a_softmax_are_ordinary(network: Function) -> None:
    assert_same_pullback(network, lambda x: network(x.clone()))
