"""Which class a text means: its index, or its name. The browser page and the C++ program follow the same rule."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

from sptrace.errors import SptraceError

PREDICTED = -1
NAME = "label:"
"""What is written before a name that looks like an index."""

_INDEX = re.compile(r"[+-]?[0-9]+")


def of_text(text: str, labels: Sequence[str] | None, units: int) -> int:
    """The index of a class given as text.

    Digits are an index, -1 the predicted class. Any other text is a name: a label, or in any case a label or one of
    the comma-separated parts of one. So is what stands behind ``label:``, and a number that is no index.

    Arguments:
        text: what was written; spaces around it do not count.
        labels: one name per class, or None.
        units: how many classes there are.

    Raises:
        SptraceError: there is no such class, or several have that name.
    """
    text = text.strip()
    if text.startswith(NAME):
        return _named(text.removeprefix(NAME), labels, units)
    index = index_of(text)
    if index is None:
        return _named(text, labels, units)
    if PREDICTED <= index < units:
        return index
    if labels is None or not any(text in _names(label) for label in labels):
        raise SptraceError(
            f"there is no class {text[:40]}: give 0 to {units - 1}, or -1 for the predicted one"
        )
    return _named(text, labels, units)


def index_of(text: str) -> int | None:
    """The number that a text of digits is, with a sign or without; None for any other text."""
    text = text.strip()
    # Of hundreds of digits it takes long to make a number, and 18 are more than there are classes.
    return int(text[:19]) if _INDEX.fullmatch(text) else None


def _named(name: str, labels: Sequence[str] | None, units: int) -> int:
    """The index of the class called `name`."""
    if labels is None:
        raise SptraceError(f"the artifact holds no class names: instead of {name!r} give 0 to {units - 1}")
    wanted = name.strip().casefold()
    matches = [index for index, label in enumerate(labels) if label.strip() == name.strip()]
    matches = matches or [index for index, label in enumerate(labels) if wanted in _names(label)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        listed = ", ".join(f"{index} ({labels[index]})" for index in matches[:9])
        more = f" and {len(matches) - 9} more" if len(matches) > 9 else ""
        raise SptraceError(f"{name!r} is the name of several classes: give one of the indices {listed}{more}")
    known = {part: index for index, label in enumerate(labels) for part in _names(label)}
    close = dict.fromkeys(known[part] for part in difflib.get_close_matches(wanted, known, n=4))
    listed = ", ".join(f"{index} ({labels[index]})" for index in close)
    advice = f"did you mean {listed}?" if close else f"give its index, 0 to {units - 1}"
    raise SptraceError(f"no class is called {name!r}: {advice}")


def _names(label: str) -> list[str]:
    """What a class may be called: its whole label and the comma-separated parts of it, in lower case."""
    return [name.strip().casefold() for name in (label, *label.split(","))]
