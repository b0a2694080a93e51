"""Maxima and minima over dimensions, as the reference sees them called.

Like `reference.eager` this shares no code with the compiler.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Reduced(NamedTuple):
    """A maximum of z over `dims`, or a minimum."""

    z: Tensor
    dims: list[int]
    largest: bool


def reduced(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Reduced | None:
    """What a call of amax, amin, max or min over dimensions reduces; None for any other call."""
    if name not in ("amax", "amin", "max", "min"):
        return None
    given = {**dict(zip(("input", "dim"), args, strict=False)), **kwargs}
    z, dim = given.get("input"), given.get("dim", ())
    if not isinstance(z, Tensor) or isinstance(dim, Tensor) or "other" in kwargs or not z.is_floating_point():
        return None
    chosen = [dim] if isinstance(dim, int) else list(dim)
    dims = [one % z.ndim for one in chosen] or list(range(z.ndim))
    return Reduced(z, dims, name in ("amax", "max"))


def stacked(first: Tensor, second: Tensor, sizes: torch.Size) -> Tensor:
    """Two maps that broadcast to [N, ...], the sizes of both together, as [N, 2, ...]."""
    return torch.stack([first.expand(sizes), second.expand(sizes)], 1)
