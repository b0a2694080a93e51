"""Class names in the order of their indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def of_mapping(names: Mapping[Any, Any]) -> list[Any] | None:
    """The names of the classes 0, 1, ... of a mapping from index to name; None if it has other keys."""
    given = {str(index): name for index, name in names.items()}
    wanted = [str(index) for index in range(len(names))]
    return [given[index] for index in wanted] if set(given) == set(wanted) else None
