"""How far two programs' answers lie apart: one number a picture, so that a faint one hides behind no strong one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float32]
Distance = Callable[[Numbers, Numbers], NDArray[np.float64]]
"""Of what is given from what is wanted, [N, ...] both: one number a picture."""

ORDINARY = 50.0
"""How many times the largest two logits that change another may be, and still set the scale."""


def of_maxima(given: Numbers, wanted: Numbers) -> NDArray[np.float64]:
    """The largest difference as a share of the largest value, float64 [N]."""
    maxima = (np.abs(_rows(numbers)).max(1) for numbers in (given - wanted, wanted, given))
    return _share(*maxima)


def of_norms(given: Numbers, wanted: Numbers) -> NDArray[np.float64]:
    """The L2 norm of the difference as a share of the norm, float64 [N]."""
    norms = (np.linalg.norm(_rows(numbers), axis=1) for numbers in (given - wanted, wanted, given))
    return _share(*norms)


def along(given: Numbers, wanted: Numbers) -> NDArray[np.float64]:
    """How much longer or shorter than wanted, as a share: the part of the difference that is parallel; float64 [N].

    A wrong factor lies in this direction alone; gates that two programs decide otherwise hardly do.
    """
    difference, direction = _rows(given - wanted), _rows(wanted)
    squares = (direction**2).sum(1)
    return np.asarray(np.abs((difference * direction).sum(1)) / np.where(squares > 0, squares, 1.0))


def of_values(given: Numbers, wanted: Numbers, steady: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The largest difference of logits, or of a layer's channels, as a share of what is ordinary; float64 [N].

    Ordinary is the largest value that changes with the picture, but no more than `ORDINARY` times the two largest:
    classes that a network masks, with -1e9 or with minus infinity, do not stretch the scale. They themselves are
    measured by their own size. Infinities must be the same.

    Arguments:
        given: [N, classes].
        wanted: [N, classes].
        steady: which classes have the same value for all pictures, bool [classes].
    """
    same = given == wanted
    with np.errstate(invalid="ignore"):  # infinity less infinity
        difference = np.where(same, 0.0, np.abs(given.astype(np.float64) - wanted))
    changing = np.where(np.isfinite(wanted) & ~steady, wanted, -np.inf)
    top = np.sort(changing, axis=1)[:, -2:]
    largest = np.where(np.isfinite(changing), np.abs(wanted), 0.0).max(1)
    scale = np.minimum(largest, ORDINARY * np.where(np.isfinite(top), np.abs(top), 0.0).max(1))[:, None]
    own = np.where(np.isfinite(wanted), np.abs(wanted), 1.0)
    apart = _share(difference, np.maximum(own, scale), np.abs(given))
    return np.asarray(apart.max(1))


def _share(difference: NDArray[np.float64], of: NDArray[np.float64], else_of: Numbers) -> NDArray[np.float64]:
    """Where nothing is wanted, all that is given is wrong."""
    scale = np.where(of > 0, of, np.where(else_of > 0, else_of, 1.0))
    with np.errstate(invalid="ignore"):
        return np.asarray(difference / scale)


def _rows(numbers: Numbers) -> NDArray[np.float64]:
    return numbers.reshape(len(numbers), -1).astype(np.float64)
