"""`sptrace programs`: what can be computed."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sptrace.programs import PROGRAMS


def programs() -> None:
    """List the programs, where they are defined, and their options."""
    table = Table("program", "what it computes", "source", "options (default; * also at run time)", box=None)
    for name, kind in PROGRAMS.items():
        options = ", ".join(
            f"{option}{'*' if about.at_run_time else ''}={about.default}" for option, about in kind.options.items()
        )
        table.add_row(name, kind.summary, kind.source, options)
    Console(highlight=False, markup=False, emoji=False).print(table)
