"""Which of the things that a network answers are the logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from sptrace.errors import UnsupportedError

_NAME = "logits"


def logits_of(answer: Any) -> Tensor:
    """The logits in a network's answer.

    Arguments:
        answer: the tensor itself; an object or mapping with `logits`; or a tuple, list, mapping, data class or other
            object, however deep, with exactly one floating point tensor in it.

    Raises:
        UnsupportedError: there is none, or there are several and none of them is called logits.
    """
    if isinstance(answer, Tensor):
        return answer
    named = answer.get(_NAME) if isinstance(answer, Mapping) else getattr(answer, _NAME, None)
    if isinstance(named, Tensor):
        return named
    found = list(_tensors(answer, ""))
    floating = [tensor for _, tensor in found if tensor.is_floating_point()]
    if floating and all(tensor is floating[0] for tensor in floating):
        return floating[0]
    listed = ", ".join(
        f"{path} [{', '.join(map(str, ('N', *tensor.shape[1:]) if tensor.ndim else ()))}] {tensor.dtype}"
        for path, tensor in found
    )
    raise UnsupportedError(
        f"the network returns {len(found)} tensors{f' ({listed})' if found else f', but {_kind(answer)}'}: "
        "wrap it so that it returns the logits alone"
    )


def _kind(answer: object) -> str:
    return "None" if answer is None else f"a {type(answer).__name__}"


def _tensors(answer: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in an answer, each with the words that lead to it."""
    if isinstance(answer, Tensor):
        yield path, answer
    elif isinstance(answer, Mapping):
        for key, item in answer.items():
            yield from _tensors(item, f"{path}[{key!r}]")
    elif isinstance(answer, tuple) and hasattr(answer, "_fields"):
        for name, item in zip(answer._fields, answer, strict=True):
            yield from _tensors(item, f"{path}.{name}")
    elif isinstance(answer, tuple | list):
        for index, item in enumerate(answer):
            yield from _tensors(item, f"{path}[{index}]")
    elif is_dataclass(answer) and not isinstance(answer, type):
        for field in fields(answer):
            yield from _tensors(getattr(answer, field.name), f"{path}.{field.name}")
    elif hasattr(answer, "__dict__") and not isinstance(answer, type):
        for name, item in vars(answer).items():
            if isinstance(
                item, Tensor | tuple | list | Mapping
            ):  # no deeper: objects may refer to each other
                yield from _tensors(item, f"{path}.{name}")
