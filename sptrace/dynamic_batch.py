"""Calls that torch.export traces for one batch size alone, said in calls that it traces for any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode


class DynamicBatch(TorchFunctionMode):
    """Within this context `take_along_dim` is a `gather`: its own broadcasting compares sizes and so fixes them."""

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func == _DATA:
            return args[0].detach()  # the same memory; torch.export loses sight of what `.data` gives
        rewrite = REWRITES.get(getattr(func, "__name__", ""))
        answer = None if rewrite is None else rewrite(*args, **kwargs)
        return func(*args, **kwargs) if answer is None else answer


def _take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor | None:
    if dim is None or input.ndim != indices.ndim:
        return None
    dim %= input.ndim
    sizes = [
        other if size == 1 and each != dim else size
        for each, (size, other) in enumerate(zip(indices.shape, input.shape, strict=True))
    ]
    wide = [
        other if size == 1 and each != dim else size
        for each, (size, other) in enumerate(zip(input.shape, indices.shape, strict=True))
    ]
    return input.expand(wide).gather(dim, indices.expand(sizes))


_DATA = Tensor.data.__get__  # type: ignore[attr-defined]

REWRITES = {"take_along_dim": _take_along_dim}
"""By the name of the call; None where the call is left as it is."""
