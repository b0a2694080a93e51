"""Where in the network's own code something happens, for messages."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

HERE = str(Path(__file__).parents[2])
"""The folder of sptrace: no source in it is the network's."""

_HARNESS = str(Path(__file__).with_name("harness.py"))
_TORCH = os.path.dirname(torch.__file__)


def is_own(file: str) -> bool:
    """Is a file the network's, and neither PyTorch's nor ours?"""
    return not file.startswith((HERE, _TORCH, "<"))


def running_line() -> str:
    """The line of the network's that is running now, "file:line"."""
    return _innermost(traceback.extract_stack()) or "an unknown place"


def line_of(error: BaseException) -> str | None:
    """The line of the network's that raised an error; None if it was none of its lines."""
    return _innermost(traceback.extract_tb(error.__traceback__))


def line_in_network(error: BaseException) -> str | None:
    """The line of the network's, as `capture.harness` calls it, that raised an error; None if it was not running."""
    stack = traceback.extract_tb(error.__traceback__)
    calls = [
        number for number, frame in enumerate(stack) if (frame.filename, frame.name) == (_HARNESS, "_call")
    ]
    return _innermost(stack[calls[-1] :]) if calls else None


def _innermost(stack: Iterable[traceback.FrameSummary]) -> str | None:
    own = [frame for frame in stack if is_own(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None
