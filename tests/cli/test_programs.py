from __future__ import annotations

import pytest

from sptrace.artifact.programs import NEURON, PROGRAMS
from sptrace.cli import main


def test_every_program_has_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["programs"])
    assert exit_.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    for name, kind in PROGRAMS.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert kind.summary in line
        assert kind.source in line
        for option, about in kind.options.items():
            if NEURON.get(option) is about:
                assert about.help in next(text for text in lines if text.split()[:1] == [option])
                continue
            assert f"{option}=" in line or f"{option}*=" in line
