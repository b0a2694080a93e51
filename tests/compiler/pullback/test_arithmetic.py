"""Arithmetic against its matrix where it is linear in the image, and against torch.autograd where it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.rule_checks import Op, check_linear, check_ordinary, compile_pullback, numbers
from torch import Tensor

from sptrace.errors import UnsupportedError

Body = Callable[..., Tensor]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x + 2, id="x + 2"),
        pytest.param(lambda x: 2 + x, id="2 + x"),
        pytest.param(lambda x: x - 2.5, id="x - 2.5"),
        pytest.param(lambda x: 2 - x, id="2 - x"),
        pytest.param(lambda x: -x, id="-x"),
        pytest.param(lambda x: +x, id="+x"),
        pytest.param(lambda x: x * 3, id="x * 3"),
        pytest.param(lambda x: 2.5 * x, id="2.5 * x"),
        pytest.param(lambda x: x / 3, id="x / 3"),
        pytest.param(lambda x: torch.add(x, 2, alpha=3), id="add a number, alpha"),
        pytest.param(lambda x: torch.add(x, x, alpha=3), id="add itself, alpha"),
        pytest.param(lambda x: torch.sub(x, 2, alpha=0.5), id="sub a number, alpha"),
        pytest.param(lambda x: torch.sub(x[:, :1], x, alpha=0.5), id="sub, alpha, broadcast"),
        pytest.param(lambda x: torch.rsub(x, 2, alpha=3), id="rsub a number, alpha"),
        pytest.param(lambda x: torch.rsub(x, x[:, :1], alpha=2), id="rsub, alpha, broadcast"),
        pytest.param(lambda x: x + x, id="x + x"),
        pytest.param(lambda x: x - x / 4, id="x - x / 4"),
        pytest.param(lambda x: x + x[:, :1], id="channels broadcast"),
        pytest.param(lambda x: x[:, :, :1] - x[:, :, :, :1], id="rows and columns broadcast"),
        pytest.param(lambda x: x[:, :1, :1, :1] + x, id="one number broadcast"),
        pytest.param(lambda x: x.unsqueeze(1) + x.unsqueeze(2), id="an outer sum"),
        pytest.param(
            lambda x: (x.transpose(0, 1) + x[:, 0]).transpose(0, 1), id="fewer dimensions broadcast"
        ),
        pytest.param(lambda x: torch.subtract(torch.multiply(x, 2), torch.divide(x, 4)), id="second names"),
        pytest.param(lambda x: torch.negative(torch.true_divide(x, 4)), id="more second names"),
        pytest.param(lambda x: x.add_(2), id="add in place"),
        pytest.param(lambda x: x.sub_(x * 3), id="sub in place"),
        pytest.param(lambda x: x.mul_(3).div_(2).neg_(), id="mul, div, neg in place"),
        pytest.param(lambda x: (x * 2).add_(x, alpha=4) + x, id="add in place, alpha, to an intermediate"),
        pytest.param(lambda x: x.multiply_(2).subtract_(1), id="second names in place"),
    ],
)
def test_linear_arithmetic(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        pytest.param(lambda x, c: x * c, (3, 1, 1), id="mul per channel"),
        pytest.param(lambda x, c: c * x, (5,), id="mul per column, constant first"),
        pytest.param(lambda x, c: x * c, (), id="mul by a single number"),
        pytest.param(lambda x, c: x[:, :, :1] * c, (1, 3, 4, 1), id="mul, the image broadcast"),
        pytest.param(lambda x, c: x[:, :1, :, :1] * c, (3, 1, 5), id="mul, both broadcast"),
        pytest.param(lambda x, c: x.unsqueeze(1) * c, (2, 1, 1, 5), id="mul, the image repeated"),
        pytest.param(lambda x, c: x.mul_(c), (3, 4, 5), id="mul in place"),
        pytest.param(lambda x, c: x / c, (3, 1, 1), id="div"),
        pytest.param(lambda x, c: x[:, :1] / c, (3, 4, 1), id="div, both broadcast"),
        pytest.param(lambda x, c: x + c, (1, 3, 1, 1), id="add"),
        pytest.param(lambda x, c: c + x[:, :1], (3, 4, 5), id="add, the image broadcast"),
        pytest.param(lambda x, c: torch.add(c, x, alpha=2), (3, 1, 1), id="add, alpha"),
        pytest.param(lambda x, c: torch.add(x, c, alpha=2), (3, 1, 1), id="add, alpha on the constant"),
        pytest.param(lambda x, c: c - x, (4, 5), id="sub, constant first"),
        pytest.param(
            lambda x, c: (c + x).transpose(0, 1), (2, 1, 3, 4, 5), id="a dimension before the batch"
        ),
        pytest.param(lambda x, c: x * (c > 0), (3, 4, 5), id="a mask"),
    ],
)
def test_arithmetic_with_a_constant(body: Body, sizes: tuple[int, ...]) -> None:
    check_linear(Op(body, 3 * numbers(*sizes, seed=5)), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x, c: x * c + c, id="integers"),
        pytest.param(lambda x, c: x / (c + 1) - c * 0.5, id="integers become floats"),
        pytest.param(lambda x, c: x * (c > 2), id="a comparison of integers"),
    ],
)
def test_arithmetic_with_integers(body: Body) -> None:
    check_linear(Op(body, torch.arange(5)), 3, 4, 5)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x * x, id="x * x"),
        pytest.param(lambda x: x * x[:, :1], id="mul, the right factor broadcast"),
        pytest.param(lambda x: x.mean((2, 3), keepdim=True) * x, id="mul, the left factor broadcast"),
        pytest.param(lambda x: x[:, :1] * x[:, :, :1], id="mul, both factors broadcast"),
        pytest.param(lambda x: x.unsqueeze(1) * x.unsqueeze(2), id="an outer product"),
        pytest.param(lambda x: (x + 0).mul_(x), id="mul in place"),
        pytest.param(lambda x: x / (x * x + 1), id="div"),
        pytest.param(lambda x: x[:, :1] / (x * x + 1), id="div, the numerator broadcast"),
        pytest.param(lambda x: x / (x[:, :, :1] * x[:, :, :1] + 1), id="div, the denominator broadcast"),
        pytest.param(lambda x: (x + 0).div_(x * x + 1), id="div in place"),
        pytest.param(lambda x: 3 / (x * x + 1), id="3 / x"),
        pytest.param(lambda x: (x * x + 1).reciprocal(), id="reciprocal"),
        pytest.param(lambda x: (x * x + 1).reciprocal_(), id="reciprocal in place"),
        pytest.param(lambda x: x / x, id="x / x"),
        pytest.param(lambda x: x * (x > 0), id="x * (x > 0)"),
        pytest.param(lambda x: x * (x > x.mean(1, keepdim=True)).float(), id="a mask of numbers"),
        pytest.param(lambda x: x * x.argmax(1, keepdim=True), id="mul by a place"),
    ],
)
def test_products_and_quotients(body: Body) -> None:
    check_ordinary(Op(body), 3, 2, 3)


def test_quotient_of_a_constant() -> None:
    check_ordinary(Op(lambda x, c: c / (x * x + 1), numbers(1, 4, 1, 3)), 1, 2, 3)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x.clamp(-0.5, 0.75), id="clamp"),
        pytest.param(lambda x: x.clamp(min=-0.5), id="clamp from below"),
        pytest.param(lambda x: x.clamp(max=0.5), id="clamp from above"),
        pytest.param(lambda x: torch.clamp_min(x, 0.25), id="clamp_min"),
        pytest.param(lambda x: torch.clamp_max(x, 0), id="clamp_max"),
        pytest.param(lambda x: x.clip(-0.5, 1), id="clip"),
        pytest.param(lambda x: x.clamp_(-1, 0.5), id="clamp in place"),
        pytest.param(lambda x: x.clamp_max_(0.5).clamp_min_(-0.5), id="clamp_min and clamp_max in place"),
        pytest.param(lambda x: torch.nn.functional.hardtanh(x, 0.25, 1), id="hardtanh without zero"),
        pytest.param(lambda x: torch.nn.functional.hardtanh(x, -1, -0.5), id="hardtanh below zero"),
    ],
)
def test_clamps(body: Body) -> None:
    check_ordinary(Op(body), 3, 2, 3)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(lambda x: x.mean((2, 3)), id="mean over the picture"),
        pytest.param(lambda x: x.mean(-1), id="mean over columns"),
        pytest.param(lambda x: x.mean([2, 3], keepdim=True), id="mean, keepdim"),
        pytest.param(lambda x: x.mean(1, True), id="mean over channels, keepdim"),
        pytest.param(lambda x: x.mean((1, -1)), id="mean over two dimensions apart"),
        pytest.param(lambda x: x.mean((-3, -2, -1), keepdim=True), id="mean over all"),
        pytest.param(lambda x: x - x.mean((2, 3), keepdim=True), id="deviation from the mean"),
        pytest.param(lambda x: x.sum(1), id="sum over channels"),
        pytest.param(lambda x: x.sum((-1, -3), keepdim=True), id="sum, keepdim"),
        pytest.param(lambda x: x.sum((1, 2, 3)).unsqueeze(1), id="sum over all"),
        pytest.param(lambda x: x.transpose(0, 1).sum((0, 3)), id="sum, the batch in the middle"),
    ],
)
def test_sums_and_means(body: Body) -> None:
    check_linear(Op(body), 3, 4, 5)


@pytest.mark.parametrize(
    ("body", "op"),
    [
        pytest.param(lambda x: x - x.mean(0), "mean.dim", id="mean"),
        pytest.param(lambda x: x - x.sum(0, keepdim=True), "sum.dim_IntList", id="sum"),
        pytest.param(
            lambda x: (x.mT.transpose(0, 1) - x.transpose(0, 1).mT.mean((1, 2), True)).transpose(0, 1),
            "mean.dim",
            id="moved",
        ),
    ],
)
def test_sums_over_the_batch_are_refused(body: Body, op: str) -> None:
    op = op.replace(".", r"\.")
    with pytest.raises(
        UnsupportedError, match=rf"aten\.{op} has no pullback here: .* the others of its batch"
    ):
        compile_pullback(Op(body), torch.zeros(2, 3, 4, 5))
