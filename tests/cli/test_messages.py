"""What the command line says on standard error."""

from __future__ import annotations

import warnings

import pytest
import typer

from sptrace import SptraceWarning, cli
from sptrace.cli.messages import warnings_as_lines


def test_a_warning_of_ours_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings_as_lines():
        for _ in range(2):  # the same one of another file is shown again
            warnings.warn("some [thing]\nis odd", SptraceWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: some [thing] is odd\n" * 2


def test_other_warnings_are_left_alone() -> None:
    with pytest.warns(RuntimeWarning, match="of another library"), warnings_as_lines():
        warnings.warn("of another library", RuntimeWarning, stacklevel=1)


def test_a_command_shows_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        warnings.warn("of a command", SptraceWarning, stacklevel=1)

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--"])
    assert not ended.value.code
    assert capsys.readouterr().err == "warning: of a command\n"
