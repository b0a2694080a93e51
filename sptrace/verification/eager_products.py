"""Gates that a network writes out as products: x * sigmoid(x), and softmax(logits) @ value.

The reference sees one call at a time. So it notes on a tensor what the tensor is: a sigmoid of what, a softmax and its
softened twin. Notes travel through rearrangements, and a product looks at those of its factors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Pullback = Callable[[Tensor], Tensor]

REARRANGING = frozenset(
    [
        "dropout",
        "view",
        "reshape",
        "transpose",
        "permute",
        "expand",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "contiguous",
        "to",
        "type_as",
        "float",
        "clone",
        "linear",
        "conv2d",
        "getitem",
        "unbind",
        "movedim",
        "swapaxes",
    ]
)
"""Calls whose result is still an attention matrix if their first argument was one; linear and conv2d mix heads."""

MULTIPLYING = frozenset(["mul", "multiply", "rmul", "imul"])
CONTRACTING = frozenset(["matmul", "rmatmul", "bmm", "einsum"])


def note(
    name: str, result: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tau: float
) -> None:
    """Write down on `result` what it is, if a later product might need that. `tau`: of attention."""
    if not args or not isinstance(result, Tensor):
        return
    x = args[0]
    if name == "sigmoid":
        result._sigmoid_of = x  # type: ignore[attr-defined]
    elif name == "softmax":
        with torch.no_grad():
            result._twin = func(x / tau, *args[1:], **kwargs)  # type: ignore[attr-defined]
    elif name in MULTIPLYING and isinstance(x, Tensor) and isinstance(args[1], int | float):
        result._multiple_of = (x, float(args[1]))  # type: ignore[attr-defined]
    elif name in REARRANGING and getattr(x, "_twin", None) is not None:
        with torch.no_grad():
            result._twin = func(x._twin, *args[1:], **kwargs)  # type: ignore[attr-defined]


def self_gate(name: str, args: Sequence[Any]) -> tuple[Tensor, float] | None:
    """(x, c) if the call is x * sigmoid(c * x)."""
    if name not in MULTIPLYING or len(args) != 2:
        return None
    for x, factor in (args, args[::-1]):
        inside = getattr(factor, "_sigmoid_of", None)
        if inside is None or not isinstance(x, Tensor):
            continue
        if inside is x:
            return x, 1.0
        multiple = getattr(inside, "_multiple_of", None)
        if multiple is not None and multiple[0] is x:
            return x, multiple[1]
    return None


def attended(
    name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Pullback] | None:
    """The value that an attention matrix is multiplied with, and its pullback through the softened matrix."""
    if name not in CONTRACTING or kwargs:
        return None
    flat = [*args[:-2], *args[-2:]] if not isinstance(args[-1], list | tuple) else [*args[:-1], *args[-1]]
    factors = [item for item in flat if isinstance(item, Tensor)]
    twins = [getattr(factor, "_twin", None) for factor in factors]
    if len(factors) != 2 or (twins[0] is None) == (twins[1] is None):
        return None
    value = factors[0] if twins[0] is None else factors[1]
    if not value.requires_grad:
        return None

    def pullback(cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            replaced = [
                leaf if item is value else getattr(item, "_twin", item) if isinstance(item, Tensor) else item
                for item in flat
            ]
            (answer,) = torch.autograd.grad(func(*replaced), leaf, cotangent)
            return answer

    return value, pullback
