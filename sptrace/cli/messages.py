"""What the command line says on standard error: one line a message."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.text import Text

from sptrace.errors import SptraceWarning


def say(kind: str, message: str, style: str) -> None:
    """Print `kind: message` as one line. It is no rich markup: square brackets in it are meant."""
    line = Text.assemble((f"{kind}: ", style), " ".join(message.split()))
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Within this context every SptraceWarning is one line; warnings of others are shown as they always were."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def show_line(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, SptraceWarning):
                say("warning", str(message), "bold yellow")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = show_line
        warnings.simplefilter("always", SptraceWarning)
        yield
