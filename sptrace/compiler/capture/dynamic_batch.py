"""Calls that torch.export traces for one batch size alone, said in calls that it traces for any."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._export import non_strict_utils
from torch.fx.experimental.sym_node import SymNode
from torch.overrides import TorchFunctionMode

from sptrace.compiler.capture.respelled import RESPELLED
from sptrace.compiler.capture.source_lines import running_line


class DynamicBatch(TorchFunctionMode):
    """Within this context what fixes sizes for no reason is called otherwise.

    | call | why |
    |---|---|
    | `take_along_dim` | its own broadcasting compares sizes |
    | `cdist` | more than 25 rows go another way, which differs by rounding |
    | `chunk`, `split`, `tensor_split` of k N pictures | the number of pieces is divided out |
    | what `respelled` lists | its own code compares sizes |
    | `len` (see `following_sizes`) | Python takes nothing but a number |
    | `max`, `min` of one tensor (there too) | torch.export takes it for the two of `torch.maximum` |
    """

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


def _cdist(
    x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist_if_necessary"
) -> Tensor | None:
    rows = (x1.shape[-2], x2.shape[-2])
    if compute_mode != "use_mm_for_euclid_dist_if_necessary" or not any(map(_is_symbolic, rows)):
        return None
    return torch.cdist(x1, x2, p, "donot_use_mm_for_euclid_dist")


def _chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...] | None:
    size = input.shape[dim]
    if not _is_symbolic(size) or not isinstance(chunks, int) or _number(size % chunks) != 0:
        return None
    return _pieces(input, dim, size // chunks, chunks)


def _split(
    tensor: Tensor, split_size_or_sections: int | torch.SymInt, dim: int = 0
) -> tuple[Tensor, ...] | None:
    size, length = tensor.shape[dim], split_size_or_sections
    if not _is_symbolic(size) or not isinstance(length, torch.SymInt) or _number(size % length) != 0:
        return None
    count = _number(size // length)
    return None if count is None else _pieces(tensor, dim, length, count)


def _pieces(x: Tensor, dim: int, length: int | torch.SymInt, count: int) -> tuple[Tensor, ...]:
    cuts = [slice(number * length, (number + 1) * length) for number in range(count)]
    before = (slice(None),) * (dim % x.ndim)
    return tuple(x[(*before, cut)] for cut in cuts)


def _is_symbolic(size: object) -> bool:
    return isinstance(size, torch.SymInt)


def _number(size: int | torch.SymInt) -> int | None:
    """What the size is for every batch; None if it depends on that. Asking fixes nothing."""
    return size.node.maybe_as_int() if isinstance(size, torch.SymInt) else size


def _formatted(number: torch.SymFloat, specification: str) -> str:
    """For a message."""
    return str(number)


@contextmanager
def following_sizes() -> Iterator[list[str]]:
    """Within this context `len(x)` of a tensor is its first size, also where that is the number of pictures.

    Gives the lines of the network's that took the number of pictures for a number.
    """
    length, as_number = builtins.len, SymNode.guard_int
    fixed: list[str] = []

    def guard_int(node: SymNode, file: str, line: int) -> int:
        if _number(torch.SymInt(node)) is None:
            fixed.append(running_line())
        return as_number(node, file, line)

    def of_anything(given: Any, /) -> Any:
        if isinstance(given, Tensor) and given.ndim and _is_symbolic(given.shape[0]):
            return given.shape[0]
        return length(given)

    of_two = non_strict_utils._tensor_min_max

    def extreme(*given: Any, real_callable: Callable[..., Any], **options: Any) -> Any:
        if len(given) == 1 and isinstance(given[0], Tensor):
            return real_callable(
                *given, **{name: options[name] for name in options if name != "tensor_callable"}
            )
        return of_two(*given, real_callable=real_callable, **options)

    patched: Any = torch.SymFloat
    nodes: Any = SymNode
    builtins.len, nodes.guard_int, non_strict_utils._tensor_min_max = of_anything, guard_int, extreme
    patched.__format__ = _formatted
    try:
        yield fixed
    finally:
        builtins.len, nodes.guard_int, non_strict_utils._tensor_min_max = length, as_number, of_two
        del patched.__format__


REWRITES: dict[str, Callable[..., Any]] = {
    "take_along_dim": _take_along_dim,
    "cdist": _cdist,
    "chunk": _chunk,
    "tensor_split": _chunk,
    "split": _split,
    **RESPELLED,
}
"""By the name of the call; None where the call is left as it is."""
