"""Matrix products against their matrices; products of two tensors of the image against torch.autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, check_linear, check_ordinary, compile_pullback, numbers, randomized
from torch import Tensor, nn

from sptrace.errors import UnsupportedError


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("before", "inputs"),
    [(nn.Flatten(), 60), (nn.Flatten(2), 20), (nn.Identity(), 5), (nn.Unflatten(2, (2, 2)), 5)],
    ids=["of a vector", "of a sequence", "of an image", "of five dimensions"],
)
def test_linear(before: nn.Module, inputs: int, bias: bool) -> None:
    check_linear(Op(nn.Sequential(before, randomized(nn.Linear(inputs, 7, bias)))), 3, 4, 5)


@pytest.mark.parametrize(
    ("product", "sizes"),
    [
        pytest.param(lambda x, w: x @ w, (5, 6), id="matrix on the right"),
        pytest.param(lambda x, w: w @ x, (6, 4), id="matrix on the left"),
        pytest.param(lambda x, w: x @ w, (3, 5, 6), id="a matrix for each channel, on the right"),
        pytest.param(lambda x, w: w @ x, (3, 6, 4), id="a matrix for each channel, on the left"),
        pytest.param(
            lambda x, w: x[:, :1] @ w, (3, 5, 2), id="the image broadcast over matrices, on the left"
        ),
        pytest.param(
            lambda x, w: w @ x[:, :1], (3, 2, 4), id="the image broadcast over matrices, on the right"
        ),
        pytest.param(
            lambda x, w: x.unsqueeze(1) @ w, (2, 1, 5, 2), id="two matrices broadcast over channels"
        ),
        pytest.param(lambda x, w: w @ x.flatten(2), (1, 6, 3), id="over channels"),
        pytest.param(lambda x, w: x @ w, (5,), id="vector on the right"),
        pytest.param(lambda x, w: w @ x, (4,), id="vector on the left"),
        pytest.param(lambda x, w: x.flatten(1) @ w, (60, 2), id="of a vector"),
        pytest.param(lambda x, w: (x.flatten(1) @ w).unsqueeze(1), (60,), id="of two vectors"),
        pytest.param(lambda x, w: torch.mv(x.flatten(1), w).unsqueeze(1), (60,), id="mv"),
        pytest.param(lambda x, w: torch.mm(x.flatten(1), w), (60, 3), id="mm"),
        pytest.param(lambda x, w: torch.bmm(x[:, 1], w.expand(x.shape[0], -1, -1)), (1, 5, 3), id="bmm"),
        pytest.param(lambda x, w: torch.bmm(w.expand(x.shape[0], 2, 4), x[:, 1]), (2, 4), id="bmm, left"),
    ],
)
def test_product_with_a_constant(product: Callable[..., Tensor], sizes: tuple[int, ...]) -> None:
    check_linear(Op(product, numbers(*sizes)), 3, 4, 5)


@pytest.mark.parametrize(
    ("beta", "alpha", "bias"), [(1, 1, (4,)), (0.5, 1, (1, 4)), (1, 3, (4,)), (2.5, -2, (1, 1))]
)
def test_addmm_to_a_constant(beta: float, alpha: float, bias: tuple[int, ...]) -> None:
    def body(image: Tensor, weight: Tensor, constant: Tensor) -> Tensor:
        return torch.addmm(constant, image.flatten(1), weight, beta=beta, alpha=alpha)

    check_linear(Op(body, numbers(60, 4), numbers(*bias)), 3, 4, 5)


def test_addmm_to_a_column_of_the_image() -> None:
    def body(image: Tensor, weight: Tensor) -> Tensor:
        wide = image.flatten(1)
        return torch.addmm(wide[:, :1], wide, weight, beta=3, alpha=0.5)

    check_linear(Op(body, numbers(60, 4)), 3, 4, 5)


@pytest.mark.parametrize(
    "product",
    [
        pytest.param(lambda x: x @ x.transpose(-1, -2), id="with itself"),
        pytest.param(lambda x: x[:, :1] @ x.transpose(2, 3), id="left factor broadcast"),
        pytest.param(lambda x: x @ x[:, 1:2].transpose(2, 3), id="right factor broadcast"),
        pytest.param(lambda x: x.unsqueeze(2) @ x.unsqueeze(1).transpose(3, 4), id="both factors broadcast"),
        pytest.param(lambda x: torch.bmm(x[:, 0], x[:, 1].transpose(1, 2)), id="bmm"),
        pytest.param(lambda x: (x.flatten(2).transpose(1, 2) @ x.flatten(2)).mean(1), id="Gram matrix"),
        pytest.param(lambda x: x @ x.mT @ x, id="three factors"),
    ],
)
def test_product_of_two_tensors_of_the_image(product: Callable[[Tensor], Tensor]) -> None:
    check_ordinary(Op(product), 2, 3, 4)


def test_weights_computed_from_the_image_are_refused() -> None:
    op = Op(lambda image: F.linear(image, image[0, 0]).flatten(1))
    with pytest.raises(UnsupportedError, match=r"rule for aten\.linear\.default does not cover its input"):
        compile_pullback(op, torch.zeros(2, 3, 4, 5))
