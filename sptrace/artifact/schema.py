"""Reading a dataclass from JSON: every value has the type that its field says, or the message names it."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar

from sptrace.artifact.numbers import is_finite

Record = TypeVar("Record")


def read(kind: type[Record], data: object, path: str = "") -> Record:
    """Make a dataclass of what JSON gave; lists become tuples.

    Arguments:
        kind: the dataclass. Its fields are annotated with int, float, str, bool, tuples, dict[str, Any], other
            dataclasses, and unions of these; a class that has a static method `from_data` reads itself.
        data: an object of JSON.
        path: of the object within the whole, for messages.

    Raises:
        ValueError: a field is missing, unknown, or of another type; numbers that are NaN or infinite are of none.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{path or 'it'} is {_shown(data)}, no object")
    hints = _hints(typing.cast(Any, kind))  # mypy takes the class of a dataclass for unhashable
    known: dict[str, Field[Any]] = {item.name: item for item in fields(kind) if item.init}  # type: ignore[arg-type]
    for name in data:
        if name not in known:
            raise ValueError(f"{_join(path, name)} is unknown")
    for name, item in known.items():
        if name not in data and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{_join(path, name)} is missing")
    return kind(
        **{name: _value(hints[name], data[name], _join(path, name)) for name in known if name in data}
    )


@lru_cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _value(hint: Any, data: object, path: str) -> Any:
    """What a field of this type takes."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return tuple(data) if isinstance(data, list) else data
    if origin in (typing.Union, types.UnionType):
        return _one_of(inner, data, path)
    if origin is tuple and isinstance(data, list):
        return _items(inner, data, path)
    if origin is dict and isinstance(data, dict):
        return {key: _value(inner[1], item, _join(path, key)) for key, item in data.items()}
    if hasattr(hint, "from_data"):
        return hint.from_data(data)
    if is_dataclass(hint) and isinstance(hint, type):
        return read(hint, data, path)
    if hint is float and is_finite(data):
        return data
    if hint in (int, str, bool) and type(data) is hint:
        return data
    if hint is type(None) and data is None:
        return None
    raise ValueError(f"{path} is {_shown(data)}")


def _one_of(kinds: tuple[Any, ...], data: object, path: str) -> Any:
    for number, kind in enumerate(kinds):
        try:
            return _value(kind, data, path)
        except ValueError:
            if number == len(kinds) - 1:
                raise
    raise AssertionError("a union of nothing")


def _items(kinds: tuple[Any, ...], data: list[Any], path: str) -> tuple[Any, ...]:
    """tuple[X, ...] takes any number, tuple[X, Y] one of each."""
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise ValueError(f"{path} has {len(data)} items in place of {len(kinds)}")
    return tuple(
        _value(kind, item, f"{path}[{number}]")
        for number, (kind, item) in enumerate(zip(kinds, data, strict=True))
    )


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _shown(data: object) -> str:
    text = repr(data)
    return text if len(text) <= 40 else f"{text[:37]}..."
