from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sptrace.errors import SptraceError
from sptrace.softening import PRESETS, RULES, GateRule, Softening

PAPER = {
    "relu": ("phi", 0.6),
    "relu6": ("phi", 0.6),
    "hardtanh": ("gate", None),
    "max_pool": ("softmax", 0.3),
}


def test_the_presets() -> None:
    gates = Softening("paper").gates()
    assert {kind: gates[kind] for kind in PAPER} == PAPER
    hard = Softening("hard").gates()
    assert {kind: hard[kind] for kind in PAPER} == dict.fromkeys(PAPER, GateRule("hard", None))
    assert Softening() == Softening("paper")


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_name_every_kind_and_known_rules(preset: str) -> None:
    assert set(PRESETS[preset]) == set(RULES) == set(Softening(preset).gates())
    for kind, (rule, tau) in PRESETS[preset].items():
        assert (tau is None) == (RULES[kind][rule] is None)


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_rule_can_be_asked_for(preset: str, kind: str) -> None:
    """A rule that has a temperature always has one, also where the preset has none."""
    for rule, tau in RULES[kind].items():
        gate = Softening(preset, rule={kind: rule}).gate(kind)
        assert gate == (rule, PRESETS[preset][kind].tau if PRESETS[preset][kind].rule == rule else tau)
        if tau is not None:
            assert Softening(preset, rule={kind: rule}, tau={kind: 0.125}).gate(kind) == (rule, 0.125)


def test_departures_concern_their_kind_alone() -> None:
    softening = Softening(
        "paper", tau={"relu": 0.25, "max_pool": 1}, rule={"relu": "sigmoid", "relu6": "hard"}
    )
    gates = softening.gates()
    assert gates["relu"] == ("sigmoid", 0.25)
    assert gates["relu6"] == ("hard", None)
    assert gates["max_pool"] == ("softmax", 1.0)
    assert gates["hardtanh"] == ("gate", None)
    assert Softening("hard", rule={"relu": "phi"}).gate("relu") == ("phi", 0.6)


@pytest.mark.parametrize("tau", [1, np.float32(0.5), np.float64(0.5), np.int64(2)])
def test_temperatures_become_floats(tau: Any) -> None:
    given = Softening("paper", tau={"relu": tau}).gate("relu").tau
    assert type(given) is float
    assert given == tau


def test_by_name_or_itself() -> None:
    softening = Softening("hard")
    assert Softening.of(softening) is softening
    assert Softening.of("paper") == Softening("paper")


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Softening().preset = "hard"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "soft"}, "there is no softening preset 'soft': use one of paper, hard"),
        ({"tau": {"gate": 1.0}}, "there is no kind of gate 'gate': use one of relu, "),
        ({"rule": {"relu7": "phi"}}, "there is no kind of gate 'relu7': use one of relu, "),
        ({"rule": {"relu": "softmax"}}, "relu has no rule 'softmax': use one of phi, sigmoid, guided, hard"),
        ({"tau": {"relu": 0}}, "the temperature of relu must be a number above 0, not 0: rule 'hard' is"),
        ({"tau": {"relu": -1.0}}, "the temperature of relu must be a number above 0, not -1.0"),
        ({"tau": {"relu": float("nan")}}, "the temperature of relu must be a number above 0, not nan"),
        ({"tau": {"relu": float("inf")}}, "the temperature of relu must be a number above 0, not inf"),
        ({"tau": {"relu": "0.5"}}, "the temperature of relu must be a number above 0, not '0.5'"),
        ({"tau": {"hardtanh": 0.5}}, "the rule 'gate' of hardtanh has no temperature: leave tau out"),
        ({"preset": "hard", "tau": {"relu": 0.5}}, "the rule 'hard' of relu has no temperature"),
        ({"rule": {"relu": "hard"}, "tau": {"relu": 0.5}}, "the rule 'hard' of relu has no temperature"),
    ],
)
def test_mistakes_say_what_to_write(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SptraceError) as error:
        Softening(**arguments)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("softening", [None, 0.6, {"relu": 0.6}])
def test_something_else(softening: Any) -> None:
    with pytest.raises(SptraceError, match=r"^softening must be the name of a preset or a Softening, not "):
        Softening.of(softening)
