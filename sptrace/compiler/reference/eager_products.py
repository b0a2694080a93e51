"""Gates that a network writes out as products: x * sigmoid(x), x * hardsigmoid(x), and softmax(logits) @ value.

The reference sees one call at a time. So it notes on a tensor what the tensor is: a sigmoid of what, a softmax and its
softened twin. Notes travel through rearrangements, and a product looks at those of its factors. A note is void once the
tensor has been changed in place.
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
        "swapdims",
        "select",
        "narrow",
        "chunk",
        "split",
        "expand_as",
        "view_as",
        "reshape_as",
    ]
)
"""Calls whose result is still an attention matrix if their first argument was one; linear and conv2d mix heads."""

MULTIPLYING = frozenset(["mul", "multiply", "rmul", "imul"])
CONTRACTING = frozenset(["matmul", "rmatmul", "bmm", "einsum"])


def _remember(tensor: Tensor, name: str, what: object) -> None:
    setattr(tensor, f"_is_{name}", (what, tensor._version))


def _recall(tensor: object, name: str) -> Any:
    """What was noted of a tensor; None if nothing was, or if it has been changed since."""
    what, version = getattr(tensor, f"_is_{name}", (None, None))
    return what if isinstance(tensor, Tensor) and tensor._version == version else None


def note(
    name: str, result: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], tau: float
) -> None:
    """Write down on `result` what it is, if a later product might need that. `tau`: of attention."""
    if not args or not isinstance(args[0], Tensor) or result is args[0]:
        return
    x = args[0]
    if name in ("sigmoid", "hardsigmoid"):
        _remember(result, name, (x, x._version))
    elif name == "softmax" and x.requires_grad:
        with torch.no_grad():
            _remember(result, "softmax", func(x / tau, *args[1:], **kwargs))
    elif name in MULTIPLYING and len(args) > 1 and isinstance(args[1], int | float):
        _remember(result, "multiple", (x, x._version, float(args[1])))
    elif name in REARRANGING and _recall(x, "softmax") is not None:
        with torch.no_grad():
            twin = func(_recall(x, "softmax"), *args[1:], **kwargs)
        several = isinstance(result, list | tuple)
        for piece, its_twin in zip(result, twin, strict=True) if several else [(result, twin)]:
            _remember(piece, "softmax", its_twin)


def self_gate(name: str, args: Sequence[Any]) -> tuple[str, Tensor, float] | None:
    """(kind, x, c) if the call is x * sigmoid(c * x), or x * hardsigmoid(x) with c = 1."""
    if name not in MULTIPLYING or len(args) != 2:
        return None
    for x, factor in (args, args[::-1]):
        if not isinstance(x, Tensor):
            continue
        hard = _recall(factor, "hardsigmoid")
        if hard is not None and hard[0] is x and hard[1] == x._version:
            return "hardswish", x, 1.0
        sigmoid = _recall(factor, "sigmoid")
        if sigmoid is None or sigmoid[0]._version != sigmoid[1]:
            continue
        inside = sigmoid[0]
        if inside is x:
            return "silu", x, 1.0
        multiple = _recall(inside, "multiple")
        if multiple is not None and multiple[0] is x and multiple[1] == x._version:
            return "quick_gelu", x, multiple[2]
    return None


def attended(
    name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Pullback] | None:
    """The value that an attention matrix is multiplied with, and its pullback through the softened matrix."""
    if name not in CONTRACTING or kwargs:
        return None
    # einsum takes its factors one by one or in a list
    flat = [*args[:-1], *args[-1]] if isinstance(args[-1], list | tuple) else list(args)
    factors = [item for item in flat if isinstance(item, Tensor)]
    twins = [_recall(factor, "softmax") for factor in factors]
    if len(factors) != 2 or (twins[0] is None) == (twins[1] is None):
        return None
    value, twin = (factors[0], twins[1]) if twins[0] is None else (factors[1], twins[0])
    if not value.requires_grad:
        return None

    def pullback(cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = value.detach().requires_grad_()
            replaced = [
                item if not isinstance(item, Tensor) else leaf if item is value else twin for item in flat
            ]
            (answer,) = torch.autograd.grad(func(*replaced), leaf, cotangent)
            return answer

    return value, pullback
