"""The `sptrace` command: one file a subcommand."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from sptrace.cli import explain, inspect
from sptrace.errors import SptraceError

app = typer.Typer(
    name="sptrace",
    help="Compile a vision network's explanation into one ONNX file, and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("explain")(explain.explain)
app.command("inspect")(inspect.inspect)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake becomes one line on standard error and exit status 2."""
    try:
        app(args=arguments)
    except SptraceError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {error}")
        sys.exit(2)
