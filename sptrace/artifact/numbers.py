"""Numbers as users give them: Python's, NumPy's, torch's single ones; finite, and none that float32 cannot hold."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

LARGEST = 1e30
"""Of a setting's magnitude: what is computed with it has to fit into float32, which ends at 3e38."""

INT64 = 2**63 - 1


def plain(given: Any) -> Any:
    """A number of any library as Python's int or float; what is none (a bool is none) as it is.

    A whole number that int64 does not hold is a float, if float64 holds it.
    """
    if isinstance(given, bool):
        return given
    if isinstance(given, Integral):
        whole = int(given)
        return whole if is_whole(whole) or abs(whole) > LARGEST else float(whole)
    if isinstance(given, Real):
        return float(given)
    return given


def is_whole(given: object) -> bool:
    """Is it a whole number that int64 holds?"""
    return isinstance(given, int) and not isinstance(given, bool) and -INT64 <= given <= INT64


def is_finite(given: object) -> bool:
    """Is it a number, neither NaN nor infinite, nor beyond what float32 can compute with?"""
    return (
        isinstance(given, int | float)
        and not isinstance(given, bool)
        and -LARGEST <= given <= LARGEST
        and math.isfinite(given)
    )
