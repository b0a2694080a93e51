"""Around a fault of torch 2.14.1 on the CPU: wrong gradients of a batch norm, without a word.

Of one picture in eval mode its backward reads a cotangent with transposed strides as if it were contiguous. LeViT,
EfficientFormer and XCiT meet that, where maps become tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class ContiguousCotangents(TorchFunctionMode):
    """Within this mode autograd is right about batch norms."""

    def __torch_function__(
        self, func: Any, types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") == "batch_norm":
            contiguous_cotangent(result)
        return result


def contiguous_cotangent(result: Tensor) -> None:
    """Let autograd hand the call that made this a cotangent in the usual order of memory."""
    if result.requires_grad:
        result.register_hook(lambda cotangent: cotangent.contiguous())  # type: ignore[no-untyped-call]
