"""Hard selections: the chosen numbers carry the cotangent to where they stood; torch.autograd on the op itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers.rule_checks import Op, SideBySide, check_ordinary, compile_pullback, numbers
from torch import Tensor

from sptrace.errors import UnsupportedError

Body = Callable[..., Tensor]


class Alone(torch.nn.Module):
    """A function as a module."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        return self.body(image)


def tokens(x: Tensor) -> Tensor:
    return x.flatten(2).mT


def strongest(x: Tensor) -> Tensor:
    """The places of the three strongest pixels of each picture, [N, 3]."""
    return x.mean(1).flatten(1).topk(3, 1)[1]


SELECTIONS: dict[str, Body] = {
    "topk": lambda x: x.flatten(2).topk(3, 2)[0],
    "topk, the smallest": lambda x: x.flatten(2).topk(3, largest=False)[0],
    "topk of channels": lambda x: x.topk(2, 1)[0],
    "topk as a mask": lambda x: x * (x >= x.flatten(2).topk(4, 2)[0][:, :, -1:, None]),
    "topk scattered": lambda x: (
        x.flatten(2) * torch.zeros_like(x.flatten(2)).scatter(2, x.flatten(2).topk(4, 2)[1], 1.0)
    ),
    "sort": lambda x: x.sort(2)[0],
    "sort downwards": lambda x: torch.sort(x, dim=3, descending=True, stable=True)[0],
    "argsort": lambda x: x.gather(3, x.argsort(3, descending=True))[..., :2],
    "msort": lambda x: torch.msort(x.transpose(0, 1)).transpose(0, 1),
    "kthvalue": lambda x: x.flatten(2).kthvalue(4, 2)[0],
    "kthvalue, kept": lambda x: x.kthvalue(2, 1, keepdim=True)[0],
    "median": lambda x: x.flatten(2).median(2)[0],
    "gather of the largest": lambda x: x.gather(2, x.argmax(2, keepdim=True)),
    "gather of the smallest": lambda x: x.gather(2, x.argmin(2, keepdim=True)),
    "gather of fewer rows": lambda x: x.gather(2, x.argmax(2, keepdim=True)[:, :1, :, :2]),
    "where the maximum stands": lambda x: tokens(x).gather(
        1, x.mean(1).flatten(1).max(1, keepdim=True)[1][:, :, None].expand(-1, -1, x.shape[1])
    ),
    "tokens": lambda x: tokens(x).gather(1, strongest(x)[:, :, None].expand(-1, -1, x.shape[1])),
    "tokens by index": lambda x: tokens(x)[torch.arange(x.shape[0])[:, None], strongest(x)],
    "one token": lambda x: tokens(x)[torch.arange(x.shape[0]), strongest(x)[:, 0]],
    "channels of one pixel": lambda x: x.flatten(2)[torch.arange(x.shape[0]), :, strongest(x)[:, 0]],
    "a pixel by row and column": lambda x: x[
        torch.arange(x.shape[0]), :, x.mean((1, 3)).argmax(1), x.mean((1, 2)).argmax(1) - 5
    ],
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(3), 3),
    "one_hot": lambda x: F.one_hot(x.mean((2, 3)).argmax(1), x.shape[1]) * x.mean((2, 3)),
    "scatter": lambda x: x.flatten(2).scatter(2, x.flatten(2).argsort(2)[..., :2], x.flatten(2)[..., 3:5]),
    "scatter_add": lambda x: x.flatten(2).scatter_add(2, x.flatten(2).topk(3, 2)[1], x.flatten(2)[..., 4:7]),
}


@pytest.mark.parametrize("part", range(5))
def test_selections(part: int) -> None:
    chosen = [body for index, body in enumerate(SELECTIONS.values()) if index % 5 == part]
    check_ordinary(Op(SideBySide(*map(Alone, chosen))), 3, 4, 5)


def test_rows_of_a_table_chosen_by_the_image() -> None:
    table = numbers(3, 6)
    check_ordinary(Op(lambda x, t: F.embedding(x.argmax(1), t) * x[:, :1, ..., None][:, 0], table), 3, 4, 5)
    check_ordinary(Op(lambda x, t: t[x.argmax(1)] * x[:, 0, ..., None], table), 3, 4, 5)


@pytest.mark.parametrize("descending", [False, True])
def test_of_equal_numbers_the_first_counts_as_first(descending: bool) -> None:
    """As a stable sort has it: the places of ties decide which of the weights a number gets."""
    image = torch.tensor([1.0, 0, 1, 0, 1, 2, 0, 2]).reshape(1, 1, 2, 4).double()
    weights = numbers(8)
    check_ordinary(
        Op(lambda x, w: torch.sort(x.flatten(1), stable=True, descending=descending)[0] * w, weights),
        image=torch.cat([image, image.flip(3)]),
    )


def test_selections_along_the_batch_are_refused() -> None:
    for body in (lambda x: x.sort(0)[0], lambda x: x.topk(1, 0)[0] + x):
        with pytest.raises(UnsupportedError, match="the others of its batch"):
            compile_pullback(Op(body), torch.zeros(2, 3, 4, 5))
