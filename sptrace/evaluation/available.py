"""What an evaluation can measure with what is given and installed: found out before the work, not during it."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from sptrace.errors import SptraceError
from sptrace.evaluation.data import Pictures
from sptrace.evaluation.methods import CAPTUM, DEFAULT, named
from sptrace.evaluation.mosaics import require_pairs

OF_QUANTUS = ("max_sensitivity", "random_logit")


def require_methods(names: Sequence[str] | None) -> None:
    """Refuse what no method is called, and captum's methods where captum is missing.

    Raises:
        SptraceError: a name is unknown, or a package is missing.
    """
    for name in DEFAULT if names is None else names:
        if not name.startswith("captum:"):
            named(name)
            continue
        if name.removeprefix("captum:") not in CAPTUM:
            raise SptraceError(f"there is no method {name}: use one of {', '.join(CAPTUM)} after captum:")
        if (missing := _missing("captum")) is not None:
            raise SptraceError(f"{name}: {missing}")


def metrics(wanted: Sequence[str], pictures: Pictures, asked: bool) -> tuple[list[str], list[str]]:
    """The metrics that can be had, and a note on each of the others.

    Arguments:
        wanted: names of metrics.
        pictures: what is evaluated.
        asked: has somebody named them? Then one that cannot be had is an error.

    Raises:
        SptraceError: a metric that was asked for cannot be had.
    """
    had, notes = [], []
    for metric in wanted:
        why = _hindrance(metric, pictures)
        if why is None:
            had.append(metric)
        elif asked:
            raise SptraceError(f"{metric} cannot be measured: {why}; or leave it out of --metrics")
        else:
            notes.append(f"{metric} is left out: {why}.")
    return had, notes


def plots() -> str | None:
    """Why there will be no plots; None if there will be."""
    why = _missing("matplotlib")
    return None if why is None else f"plots are left out: {why}."


def _hindrance(metric: str, pictures: Pictures) -> str | None:
    if metric in OF_QUANTUS:
        return _missing("quantus")
    if metric != "focus":
        return None
    if pictures.labels is None:
        return "its mosaics need the pictures' classes, give --labels"
    try:
        require_pairs(pictures.labels)
    except SptraceError as error:
        return str(error)
    return None


def _missing(package: str) -> str | None:
    """What to install; None if the package can be imported."""
    try:
        importlib.import_module(package)
    except ImportError as error:
        hint = ", and where libGL is missing apt install libgl1" if "libGL" in str(error) else ""
        return f"{package} cannot be imported ({str(error).splitlines()[0]}): pip install {package}{hint}"
    return None
