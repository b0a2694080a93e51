"""Where in the network's own code something happens, for messages."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable

import torch

HERE = os.path.dirname(__file__)
"""No source of the network's."""

_TORCH = os.path.dirname(torch.__file__)


def is_own(file: str) -> bool:
    """Is a file the network's, and neither PyTorch's nor ours?"""
    return not file.startswith((HERE, _TORCH, "<"))


def running_line() -> str:
    """The line of the network's that is running now, "file:line"; "an unknown place" where there is none."""
    return _innermost(traceback.extract_stack())


def line_of(error: BaseException) -> str:
    """The line of the network's that raised an error."""
    return _innermost(traceback.extract_tb(error.__traceback__))


def _innermost(stack: Iterable[traceback.FrameSummary]) -> str:
    own = [frame for frame in stack if is_own(frame.filename)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else "an unknown place"
