"""Calls whose own code fixes the batch size by comparing sizes, composed of calls that do not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sptrace.errors import UnsupportedError


def _kron(input: Tensor, other: Tensor) -> Tensor:
    rank = max(input.ndim, other.ndim)
    rows, columns = ([*[1] * (rank - each.ndim), *each.shape] for each in (input, other))
    left = input.reshape([size for length in rows for size in (length, 1)])
    right = other.reshape([size for length in columns for size in (1, length)])
    return (left * right).reshape([row * column for row, column in zip(rows, columns, strict=True)])


def _matrix_norm(
    input: Tensor,
    ord: str | float = "fro",
    dim: tuple[int, int] = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    if dtype is not None or not isinstance(ord, int | float):
        return None
    if abs(ord) == 2:
        singular = torch.linalg.svdvals(input.movedim(dim, (-2, -1)))
        largest: Tensor = (singular.amax if ord > 0 else singular.amin)(-1)
        return largest
    summed, compared = dim if abs(ord) == 1 else dim[::-1]
    sums = torch.linalg.vector_norm(input, 1, summed, keepdim=True)
    extreme = math.inf if ord > 0 else -math.inf  # not amax, which would be a gate
    norm: Tensor = torch.linalg.vector_norm(sums, extreme, compared, keepdim=True)
    if not keepdim:
        norm = norm.squeeze(dim)
    return norm


def _multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    return functools.reduce(torch.matmul, tensors)


def _native_channel_shuffle(input: Tensor, groups: int) -> Tensor:
    raise UnsupportedError(
        "PyTorch has no derivative for native_channel_shuffle: call torch.nn.functional.channel_shuffle"
    )


RESPELLED: dict[str, Callable[..., Tensor | None]] = {
    "kron": _kron,
    "linalg_matrix_norm": _matrix_norm,
    "linalg_multi_dot": _multi_dot,
    "native_channel_shuffle": _native_channel_shuffle,
}
"""By the name of the call; None where the call is left as it is."""
