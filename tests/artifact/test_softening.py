from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import numpy as np
import pytest

from sptrace.artifact.softening import MEASURED, PRESETS, RULES, GateRule, Relative, Softening
from sptrace.errors import SptraceError

TEMPERATURE = "the temperature of relu must be a number above 0, or one like '0.6std' or '2rms'"

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
    assert Softening() == Softening("relative") == Softening("relative", scale="calibration")
    assert Softening("paper") == Softening("paper", scale="sample")
    relative = Softening().gates()
    assert relative["relu"] == ("phi", MEASURED)
    assert relative["relu6"] == ("relu", MEASURED)
    assert relative["max_pool"] == ("softmax", MEASURED)
    assert {kind: relative[kind] for kind in ("gelu", "silu", "attention", "layer_norm")} == {
        kind: gates[kind] for kind in ("gelu", "silu", "attention", "layer_norm")
    }
    assert Softening().is_relative
    assert not any(Softening(preset).is_relative for preset in ("paper", "hard", "excitation", "guided"))


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
    tau = {"relu": 0.5}
    softening = Softening(tau=tau, overrides={"a": {"relu": 0.3}})
    with pytest.raises(dataclasses.FrozenInstanceError):
        softening.preset = "hard"  # type: ignore[misc]
    for mapping in (softening.tau, softening.rule, softening.overrides, softening.overrides["a"]):
        with pytest.raises(TypeError):
            mapping["relu"] = 1.0  # type: ignore[index]
    tau["relu"] = 7.0
    assert softening.gate("relu").tau == 0.5


@pytest.mark.parametrize("given", ["0.6std", " 0.6 std ", Relative(0.6), Relative(np.float64(0.6))])
def test_temperatures_relative_to_the_layer(given: Any) -> None:
    softening = Softening("paper", tau={"relu": given})
    assert softening.gate("relu") == ("phi", Relative(0.6))
    assert softening == Softening("paper", tau={"relu": "0.6std"})
    assert softening.is_relative
    assert Softening("paper", overrides={"a": {"relu": ("sigmoid", given)}}).is_relative
    assert not Softening("paper", tau={"relu": 0.6}, overrides={"a": {"relu": "hard"}}).is_relative


@pytest.mark.parametrize("given", ["2rms", "2.0 rms", Relative(2, "rms")])
def test_temperatures_relative_to_what_passes(given: Any) -> None:
    softening = Softening("paper", tau={"relu": given})
    assert softening.gate("relu") == ("phi", Relative(2.0, "rms"))
    assert softening != Softening("paper", tau={"relu": "2std"})
    assert str(softening.gate("relu").tau) == "2rms"


def test_overrides() -> None:
    softening = Softening(
        "paper",
        tau={"relu": 0.5},
        overrides={
            "*": {"max_pool": "hard"},
            "layer4.*": {"relu": 0.25, "max_pool": 0.125},
            "layer4.1.*": {"relu": ("sigmoid", 2)},
            "layer4.1.last": {"relu": "guided"},
        },
    )
    assert softening.gate("relu") == ("phi", 0.5)
    assert softening.gate("max_pool") == ("softmax", 0.3)
    assert softening.gates("layer3.0")["relu"] == ("phi", 0.5)
    assert softening.gates("layer3.0")["max_pool"] == ("hard", None)
    assert softening.gate("relu", "layer4.0.act") == ("phi", 0.25)
    # A temperature alone is one of the softening's own rule, whatever another override said.
    assert softening.gate("max_pool", "layer4.0.act") == ("softmax", 0.125)
    assert softening.gate("relu", "layer4.1.act") == ("sigmoid", 2.0)
    assert softening.gate("relu", "layer4.1.last") == ("guided", None)
    assert softening.gate("relu", "layer4") == ("phi", 0.5)
    assert softening.matching("relu", "layer4.1.act") == ["layer4.*", "layer4.1.*"]


@pytest.mark.parametrize(
    "softening",
    [
        Softening(),
        Softening("guided", rule={"gelu": "gate"}),
        Softening(
            tau={"relu": "0.1std", "gelu": 1 / 3},
            overrides={"a": {"relu": (None, 0.2)}, "b": {"relu": ["sigmoid", "0.3rms"], "gelu": "hard"}},
            scale="calibration",
        ),
    ],
)
def test_it_can_be_written_down(softening: Softening) -> None:
    assert Softening(**json.loads(json.dumps(softening.as_dict()))) == softening
    assert copy.deepcopy(softening) == pickle.loads(pickle.dumps(softening)) == softening


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"preset": "soft"}, "there is no softening preset 'soft': use one of relative, paper, hard"),
        ({"tau": {"gate": 1.0}}, "there is no kind of gate 'gate': use one of relu, "),
        ({"rule": {"relu7": "phi"}}, "there is no kind of gate 'relu7': use one of relu, "),
        ({"rule": {"relu": "softmax"}}, "relu has no rule 'softmax': use one of phi, sigmoid, guided, hard"),
        ({"tau": {"relu": 0}}, f"{TEMPERATURE}, not 0: rule 'hard' is"),
        ({"tau": {"relu": -1.0}}, f"{TEMPERATURE}, not -1.0"),
        ({"tau": {"relu": float("nan")}}, f"{TEMPERATURE}, not nan"),
        ({"tau": {"relu": float("inf")}}, f"{TEMPERATURE}, not inf"),
        ({"tau": {"relu": "0.5"}}, f"{TEMPERATURE}, not '0.5'"),
        ({"tau": {"relu": "x std"}}, f"{TEMPERATURE}, not 'x std'"),
        ({"tau": {"relu": "-1std"}}, f"{TEMPERATURE}, not '-1std'"),
        ({"tau": {"relu": Relative(0)}}, f"{TEMPERATURE}, not Relative(factor=0, unit='std')"),
        ({"tau": {"relu": Relative(1.0, "max")}}, f"{TEMPERATURE}, not Relative(factor=1.0, unit='max')"),
        ({"tau": {"relu": True}}, f"{TEMPERATURE}, not True"),
        ({"tau": {"attention": "1std"}}, "the temperature of attention cannot be relative: give a number"),
        ({"tau": 0.5}, "tau of a softening must be a mapping, not 0.5"),
        ({"scale": "layer"}, "there is no scale 'layer': use one of sample, calibration"),
        (
            {"overrides": {"a.*": 0.3}},
            "the override 'a.*' must say what changes, like {'relu': 0.3}, not 0.3",
        ),
        ({"overrides": {3: {"relu": 0.3}}}, "the override of 3: give the path of a module, or a pattern"),
        ({"overrides": {"a.*": {}}}, "the override 'a.*' must say what changes"),
        ({"overrides": {"a.*": {"relu7": 1}}}, "there is no kind of gate 'relu7'"),
        ({"overrides": {"a.*": {"relu": "softmax"}}}, "relu has no rule 'softmax'"),
        ({"overrides": {"a.*": {"relu": 0}}}, f"{TEMPERATURE}, not 0"),
        ({"overrides": {"a.*": {"relu": ("hard", 1)}}}, "the rule 'hard' of relu has no temperature"),
        ({"overrides": {"a.*": {"relu": ("phi", 1, 2)}}}, TEMPERATURE),
        ({"preset": "hard", "overrides": {"a.*": {"relu": 1}}}, "the rule 'hard' of relu has no temperature"),
        ({"tau": {"hardtanh": 0.5}}, "the rule 'gate' of hardtanh has no temperature: leave it out"),
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
