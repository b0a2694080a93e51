from __future__ import annotations

import pytest

from sptrace.cli import main
from sptrace.programs import PROGRAMS


def test_every_program_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["programs"])
    assert exit_.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    for name, kind in PROGRAMS.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert kind.summary in line
        assert kind.source in line
        for option in kind.options:
            assert f"{option}=" in line or f"{option}*=" in line
