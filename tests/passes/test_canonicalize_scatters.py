"""Writing at fixed places, against the matrix of the op; masks against torch.autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers.rule_checks import Op, check_linear, check_ordinary, compile_pullback, numbers
from helpers.small_networks import ops
from torch import Tensor

from sptrace.errors import UnsupportedError

PLACES = torch.tensor([3, 0, 2])
SCATTERED = torch.tensor([[[5, 0, 7], [1, 2, 3]]])
MASK = torch.tensor([[True, False, False, True], [False, True, False, False], [False] * 4])


def flat(x: Tensor) -> Tensor:
    return x.flatten(2)


def every(x: Tensor, index: Tensor) -> Tensor:
    return index.expand(x.shape[0], -1, -1)


def assigned(x: Tensor) -> Tensor:
    y = x * 2
    y[:, :, :, PLACES] = x[:, :, :, :3] * 3
    y[:, [1]] = 0.5
    y[..., [0, 2], [1, 3]] += 1
    y[:, :, MASK] = 4
    return y


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "assignment": assigned,
    "index_copy": lambda x: x.index_copy(3, PLACES, x[..., 1:]),
    "index_add": lambda x: x.index_add(3, torch.tensor([1, 1, 3]), x[..., 1:], alpha=2),
    "index_fill": lambda x: x.index_fill(3, PLACES, 0.5),
    "scatter": lambda x: flat(x).scatter(2, every(x, SCATTERED), flat(x)[..., 4:7]),
    "scatter of more than is written": lambda x: flat(x).scatter(2, every(x, SCATTERED), flat(x)),
    "scatter of a number": lambda x: flat(x).scatter(2, every(x, SCATTERED), 1.5),
    "scatter_add": lambda x: flat(x)[..., :8].scatter_add(2, every(x, SCATTERED) // 2, flat(x)[..., 4:7]),
    "scatter_reduce": lambda x: flat(x).scatter_reduce(2, every(x, SCATTERED), flat(x)[..., 4:7], "sum"),
    "slice_scatter": lambda x: x.slice_scatter(x[..., :2] * 3, 3, 0, 4, 2),
    "select_scatter": lambda x: x.select_scatter(x[:, 0] * 3, 1, -1),
    "diagonal_scatter": lambda x: x.diagonal_scatter(x[:, :, 0, :3], 1, 2, 3),
    "diag_embed": lambda x: torch.diag_embed(x[:, :, 0], -1),
    "diagonal": lambda x: x.diagonal(-1, 2, 3),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writing(write: Callable[[Tensor], Tensor]) -> None:
    check_linear(Op(write), 2, 3, 4)


def test_a_mask_of_the_image() -> None:
    def body(x: Tensor) -> Tensor:
        y = x * 2
        y[x < 0.25] = 0.25
        return y

    check_ordinary(Op(body), 2, 3, 4)


def test_what_is_written_once_needs_no_matrix() -> None:
    module = compile_pullback(Op(WRITES["scatter"]), numbers(2, 2, 3, 4))
    assert not {"aten.matmul.default", "aten.scatter_add.default"} & set(ops(module))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda x: x.index_copy(0, torch.tensor([0]), x[:1]), "along the batch"),
        (lambda x: x.index_add(3, x.argmax(3)[0, 0], x[..., :3]), "computed from the image"),
        (lambda x: x.scatter_reduce(3, x.argsort(3), x, "mean"), 'use "sum"'),
        (lambda x: x.masked_select(x > 0).sum() + x, "depend on the values of a tensor"),
    ],
)
def test_refusals(write: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        compile_pullback(Op(write), numbers(2, 2, 3, 4))
