from __future__ import annotations

import pytest

from sptrace.artifact.programs import PROGRAMS, program_kind
from sptrace.artifact.softening import Softening
from sptrace.errors import SptraceError

ASKED = Softening("paper", tau={"relu": 0.5})


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    kind = program_kind(name)
    assert kind is PROGRAMS[name]
    for text in (kind.summary, kind.source):
        assert text
        assert "\n" not in text
    assert kind.softening(ASKED) in (ASKED, Softening("hard"), Softening("guided"))


@pytest.mark.parametrize(("name", "softening"), [("soft_pullback", ASKED), ("gradient", Softening("hard"))])
def test_the_gradient_is_hard_whatever_is_asked_for(name: str, softening: Softening) -> None:
    assert program_kind(name).softening(ASKED) == softening


@pytest.mark.parametrize("name", ["saliency", "", "Gradient"])
def test_an_unknown_program(name: str) -> None:
    with pytest.raises(
        SptraceError, match=rf"^there is no program '{name}': .*soft_pullback, gradient"
    ) as error:
        program_kind(name)
    assert "\n" not in str(error.value)
