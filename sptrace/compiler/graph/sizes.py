"""Sizes of tensors: numbers, and multiples of the batch size N. N and 2 N are two sizes, and neither is a number.

Every tensor's shape is known at the two batch sizes of `BATCHES`. A size that is the same for both is a number; one
that is k times the batch for both is `BatchSize(k)`. Nothing else has a meaning for every batch, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from sptrace.errors import UnsupportedError

BATCHES = (2, 3)
"""Two runs without data tell which sizes depend on the batch, in a hundredth of the time that symbolic sizes take."""


@dataclass(frozen=True)
class BatchSize:
    """`each` numbers for every picture of the batch."""

    each: int = 1

    def __mul__(self, times: int) -> BatchSize:
        return BatchSize(self.each * times)

    def __str__(self) -> str:
        return "N" if self.each == 1 else f"{self.each} N"


Size = int | BatchSize

BATCH = BatchSize()
"""The batch size itself."""


def size_of(given: Sequence[int]) -> Size:
    """The size that these numbers are at `BATCHES`.

    Raises:
        UnsupportedError: it is no number and no multiple of the batch size.
    """
    first, second = given
    if first == second:
        return first
    each, rest = divmod(first, BATCHES[0])
    if rest or each * BATCHES[1] != second:
        raise UnsupportedError("a size is no multiple of the number of pictures")
    return BatchSize(each)


def is_symbolic_size(size: torch.SymInt | int) -> bool:
    """Is this size, as torch.export writes it, a number or a multiple of the batch size, for every batch?

    At two batch sizes alone N // 2 would look like a number.
    """
    if isinstance(size, int):
        return True
    _, batch = size.node.expr.as_coeff_Mul()
    return bool(batch.is_Symbol)


def fixed_number(given: object) -> float | None:
    """The number that arithmetic on sizes gives, as torch.export writes it, if it is the same for every batch."""
    if not isinstance(given, torch.SymInt | torch.SymFloat):
        return given if isinstance(given, int | float) else None
    expression = given.node.expr
    symbols = expression.free_symbols
    found = {expression.subs(dict.fromkeys(symbols, count)) for count in (2, 3, 5, 7, 64, 1001)}
    if len(found) > 1 or not (number := found.pop()).is_number:
        return None
    return int(number) if isinstance(given, torch.SymInt) else float(number)


def joint(sizes: Iterable[Size]) -> Size:
    """The size of several dimensions in one.

    Raises:
        UnsupportedError: more than one depends on the batch.
    """
    numbers, batches = 1, []
    for size in sizes:
        if isinstance(size, BatchSize):
            batches.append(size)
        else:
            numbers *= size
    if len(batches) > 1:
        raise UnsupportedError("pictures of a batch are combined with each other")
    return batches[0] * numbers if batches else numbers


def literal(sizes: Sequence[Size]) -> list[int]:
    """What a reshape is given: the one size that depends on the batch is -1, which stands for what is left over.

    Raises:
        UnsupportedError: more than one size depends on the batch.
    """
    joint(sizes)
    return [-1 if isinstance(size, BatchSize) else size for size in sizes]
