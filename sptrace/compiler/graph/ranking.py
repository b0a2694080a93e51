"""Where the largest or smallest numbers of a tensor stand: a single node, of whole numbers, that gates nothing."""

from __future__ import annotations

import torch
from torch import Tensor


def places(x: Tensor, k: int, dim: int, largest: bool) -> Tensor:
    """int64: the places along `dim` of the k largest (or smallest) numbers, of equal ones the first first."""
    return torch.sort(x, dim=dim, descending=largest, stable=True)[1].narrow(dim, 0, k)
