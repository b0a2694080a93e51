"""The `sptrace` command: one file a subcommand."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import typer

from sptrace.cli import bench, compile, coverage, demo, evaluate, explain, inspect, package, programs, web
from sptrace.cli.messages import say, warnings_as_lines
from sptrace.errors import SptraceError

app = typer.Typer(
    name="sptrace",
    help="Compile a vision network's explanation into one ONNX file, and run it.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("compile")(compile.compile_)
app.command("explain")(explain.explain)
app.command("inspect")(inspect.inspect)
app.command("programs")(programs.programs)
app.command("coverage")(coverage.coverage)
app.command("evaluate")(evaluate.evaluate)
app.command("bench")(bench.bench)
app.command("web")(web.web)
app.command("package")(package.package)
app.command("demo")(demo.demo)

# Typer exports one of the errors for a mistyped command line; its base is what they have in common.
UsageError: type[Any] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2, a warning one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _ending_on_sigterm(), warnings_as_lines():
            sys.exit(app(args=arguments or ["--help"], prog_name="sptrace", standalone_mode=False))
    except SptraceError as error:
        _fail(str(error))
    except UsageError as error:
        _fail(error.format_message())
    except typer.Abort:
        sys.exit(130)


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """Within this context a plain `kill` unwinds as Ctrl-C does, so that temporary files go with the process."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # signals belong to the main thread; in another one nothing changes
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str) -> NoReturn:
    say("error", message, "bold red")
    sys.exit(2)
