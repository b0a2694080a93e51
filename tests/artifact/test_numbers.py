from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sptrace.artifact.numbers import is_finite, is_whole, plain
from sptrace.artifact.programs import PROGRAMS
from sptrace.errors import SptraceError


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (np.int64(3), 3),
        (2**70, 2.0**70),
        (10**400, 10**400),
        (np.float32(0.5), 0.5),
        (np.uint8(2), 2),
        (True, True),
        ("3", "3"),
        (None, None),
    ],
)
def test_numbers_of_other_libraries_become_pythons(given: Any, wanted: Any) -> None:
    assert plain(given) == wanted
    assert type(plain(given)) is type(wanted)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), -float("inf"), 1e39, 10**400, True, "1", None])
def test_what_float32_cannot_compute_with(given: Any) -> None:
    assert not is_finite(given)


@pytest.mark.parametrize("given", [2**63, -(2**63) - 1, 1.0, True, "1"])
def test_what_is_no_whole_number_of_64_bits(given: Any) -> None:
    assert not is_whole(given)


def test_settings_of_numpy_are_settings() -> None:
    settings = PROGRAMS["pullback_ascent"].settings({"steps": np.int64(3), "alpha": np.float32(2)})
    assert settings["steps"] == 3
    assert type(settings["steps"]) is int
    assert type(settings["alpha"]) is float


@pytest.mark.parametrize("program", sorted(PROGRAMS))
@pytest.mark.parametrize("setting", [float("nan"), float("inf"), 10**40, 1e39])
def test_no_option_of_any_program_takes_them(program: str, setting: float) -> None:
    for name in PROGRAMS[program].options:
        with pytest.raises(SptraceError, match=rf"^{name} must be "):
            PROGRAMS[program].settings({name: setting})


def test_more_steps_than_64_bits_count() -> None:
    with pytest.raises(SptraceError, match=r"^steps must be "):
        PROGRAMS["pullback_ascent"].settings({"steps": 99999999999999999999})
