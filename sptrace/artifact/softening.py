"""Softening: which rule and temperature the pullback uses for which kind of gate. Data only, torch-free."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

from sptrace.artifact.numbers import is_finite, plain
from sptrace.errors import SptraceError

UNITS = ("std", "rms")


class Relative(NamedTuple):
    """A temperature relative to the layer, written "0.6std" or "2rms".

    Arguments:
        factor: the temperature in units of the layer's scale.
        unit: that scale: "std", the standard deviation of the gate's input z over one picture; or "rms", the root mean
            square of max(z, 0), which is what a ReLU lets through.
    """

    factor: float
    unit: str = "std"

    def __str__(self) -> str:
        return f"{self.factor:g}{self.unit}"


Temperature = float | Relative | None
"""In units of the gate's input; relative to its scale; or None where a rule has no temperature."""


class GateRule(NamedTuple):
    """How one kind of gate treats the cotangent."""

    rule: str
    tau: Temperature


RULES: Mapping[str, Mapping[str, float | None]] = MappingProxyType(
    {
        "relu": {"phi": 0.6, "sigmoid": 0.3, "guided": None, "hard": None},
        "relu6": {"phi": 0.6, "relu": 0.6, "hard": None},
        "hardtanh": {"gate": None, "hard": None},
        "leaky_relu": {"phi": 0.6, "hard": None},
        "elu": {"phi": 0.6, "hard": None},
        "silu": {"gate": 1.6, "hard": None},
        "gelu": {"gate": 1.0, "hard": None},
        "quick_gelu": {"gate": 1.0, "hard": None},
        "hardswish": {"gate": 1.0, "hard": None},
        "mish": {"gate": 1.0, "hard": None},
        "softplus": {"gate": 1.0, "hard": None},
        "glu": {"gate": 1.0, "hard": None},
        "max_pool": {"softmax": 0.3, "hard": None},
        "layer_norm": {"frozen": None, "hard": None},
        "group_norm": {"frozen": None, "hard": None},
        "rms_norm": {"frozen": None, "hard": None},
        "attention": {"value": 1.0, "full": None},
    }
)
"""The rules that each kind of gate knows, METHOD's own first, the ordinary gradient last, each with its temperature.

None: the rule has no temperature. `relu6` is any Hardtanh whose lower end is 0; `leaky_relu` covers PReLU, `elu` covers
SELU and CELU, `group_norm` covers instance norm. A smooth gate at temperature 1 is softened by nothing but its own
slope being left out.
"""

_PAPER = {kind: GateRule(*next(iter(rules.items()))) for kind, rules in RULES.items()}
_HARD = {kind: GateRule(list(rules)[-1], None) for kind, rules in RULES.items()}
MEASURED = Relative(2.0, "rms")
"""The temperature of preset `relative`: docs/faithfulness.md says how it was chosen."""

_RELATIVE_TO_LAYER = {
    **_PAPER,
    **{kind: GateRule("phi", MEASURED) for kind in ("relu", "leaky_relu", "elu")},
    "relu6": GateRule("relu", MEASURED),
    "max_pool": GateRule("softmax", MEASURED),
}
PRESETS: Mapping[str, Mapping[str, GateRule]] = MappingProxyType(
    {
        "relative": _RELATIVE_TO_LAYER,
        "paper": _PAPER,
        "hard": _HARD,
        "excitation": {**_PAPER, "relu": GateRule("sigmoid", 0.3)},
        "guided": {**_HARD, "relu": GateRule("guided", None)},
    }
)
"""`relative`: piecewise linear gates and maxima at `MEASURED`, ReLU6 as a ReLU; the others as in `paper`.

`paper`: arXiv 2507.22832, and by y = z * m(z) where it is silent. `hard`: ordinary gradients. `excitation`: the older
form of the method, sigma(z / 0.3) for ReLUs. `guided`: guided backpropagation (Springenberg et al., arXiv 1412.6806).
"""


DEFAULT_PRESET = "relative"
"""What `compile` uses if nobody says otherwise."""

COLDEST, HOTTEST = 1e-6, 1e6
"""Between these float32 can compute a gate; colder is hard, and hotter lets half of everything through."""

SCALES = ("sample", "calibration")
"""Where relative temperatures get a layer's scale from: from each picture itself, or measured once when compiling."""


class Override(NamedTuple):
    """What is different about a kind of gate somewhere: its rule, its temperature, or both. None: that is as usual."""

    rule: str | None
    tau: Temperature


_RELATIVE = re.compile(rf"\s*(\S+?)\s*({'|'.join(UNITS)})\s*")


@dataclass(frozen=True)
class Softening:
    """A preset, and where to depart from it. Checks itself; raises SptraceError with what to write instead.

    A temperature is a number above 0 in units of the gate's input z; or relative to the scale of z over the picture:
    "0.6std" or Relative(0.6), to its standard deviation; "2rms" or Relative(2, "rms"), to the root mean square of
    max(z, 0).

    Arguments:
        preset: a name of `PRESETS`.
        tau: temperature per kind of gate; for example {"relu": 0.5, "max_pool": "0.3std"}.
        rule: rule per kind of gate, a name of `RULES`; for example {"max_pool": "hard"}.
        overrides: what is different in modules whose path matches a pattern, in which * stands for anything: per kind
            of gate a temperature, a rule, or a pair of both. For example {"layer4.*": {"relu": 0.3, "max_pool":
            "hard"}, "features.3": {"relu": ("sigmoid", "0.5std")}}. Where several match, the last one counts.
        scale: where relative temperatures get a layer's scale from: "sample", from each picture, computed in
            the graph; or "calibration", measured once when compiling, on the calibration pictures or else on
            synthetic ones that are the same everywhere. None: the latter for preset `relative`, else the former.
    """

    preset: str = DEFAULT_PRESET
    tau: Mapping[str, float | str | Relative] = field(default_factory=dict)
    rule: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scale: str | None = None

    def __post_init__(self) -> None:
        for name in ("tau", "rule", "overrides"):
            if not isinstance(getattr(self, name), Mapping):
                raise SptraceError(f"{name} of a softening must be a mapping, not {getattr(self, name)!r}")
        if self.preset not in PRESETS:
            raise SptraceError(
                f"there is no softening preset {self.preset!r}: use one of {', '.join(PRESETS)}"
            )
        if self.scale is None:
            object.__setattr__(self, "scale", SCALES[self.preset == "relative"])
        if self.scale not in SCALES:
            raise SptraceError(f"there is no scale {self.scale!r}: use one of {', '.join(SCALES)}")
        for kind in [*self.tau, *self.rule]:
            _check_kind(kind)
        for kind in self.rule:
            _check_rule(kind, self.rule[kind])
        for kind in self.tau:
            _check_temperature(kind, self._rule(kind), self.tau[kind])
        self._keep("rule", self.rule)
        self._keep("tau", {kind: _temperature(given) for kind, given in self.tau.items()})
        self._keep(
            "overrides",
            {pattern: self._checked(pattern, changes) for pattern, changes in self.overrides.items()},
        )

    def _keep(self, name: str, mapping: Mapping[str, Any]) -> None:
        """Store a copy that nobody can change."""
        object.__setattr__(self, name, MappingProxyType(dict(mapping)))

    def _checked(self, pattern: str, changes: object) -> Mapping[str, Override]:
        """The overrides of one pattern by kind of gate."""
        if not isinstance(pattern, str):
            raise SptraceError(
                f"the override of {pattern!r}: give the path of a module, or a pattern of paths"
            )
        if not isinstance(changes, Mapping) or not changes:
            raise SptraceError(
                f"the override {pattern!r} must say what changes, like {{'relu': 0.3}}, not {changes!r}"
            )
        checked = {}
        for kind, change in changes.items():
            _check_kind(kind)
            override = _override(change)
            if override.rule is not None:
                _check_rule(kind, override.rule)
            if override.rule is None or override.tau is not None:
                _check_temperature(kind, override.rule or self._rule(kind), override.tau)
            checked[kind] = override
        return MappingProxyType(checked)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.as_dict(),)

    @staticmethod
    def from_data(data: object) -> Softening:
        """Of what `as_dict` gave, read back from JSON; ValueError if that is damaged."""
        if not isinstance(data, dict) or not data.keys() <= {item.name for item in fields(Softening)}:
            raise ValueError("softening is none")
        try:
            return Softening(**data)
        except (SptraceError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error

    @staticmethod
    def of(softening: Softening | str) -> Softening:
        """`softening` itself, or the preset of that name."""
        if not isinstance(softening, Softening | str):
            raise SptraceError(
                f"softening must be the name of a preset or a Softening, not {type(softening).__name__}"
            )
        return softening if isinstance(softening, Softening) else Softening(softening)

    def _rule(self, kind: str) -> str:
        return self.rule.get(kind, PRESETS[self.preset][kind].rule)

    def gate(self, kind: str, path: str | None = None) -> GateRule:
        """Rule and temperature for one kind of gate: in the module of that path, or where no override matches."""
        gate = self._default(kind, self._rule(kind))
        if kind in self.tau:
            gate = gate._replace(tau=_temperature(self.tau[kind]))
        for pattern in self.matching(kind, path) if path is not None else ():
            override = self.overrides[pattern][kind]
            gate = self._default(kind, override.rule or self._rule(kind))
            gate = gate if override.tau is None else gate._replace(tau=override.tau)
        return gate

    def gates(self, path: str | None = None) -> dict[str, GateRule]:
        """Rule and temperature for every kind of gate, as `gate` gives them."""
        return {kind: self.gate(kind, path) for kind in RULES}

    def matching(self, kind: str, path: str) -> list[str]:
        """The patterns of those overrides that concern this kind of gate in the module of that path."""
        return [
            pattern
            for pattern, changes in self.overrides.items()
            if kind in changes and fnmatchcase(path, pattern)
        ]

    @property
    def is_relative(self) -> bool:
        """Does any temperature depend on its layer's scale?"""
        overrides = (override for changes in self.overrides.values() for override in changes.values())
        taus = [gate.tau for gate in self.gates().values()] + [change.tau for change in overrides]
        return any(isinstance(tau, Relative) for tau in taus)

    def as_dict(self) -> dict[str, Any]:
        """All that it was made from, in types that JSON knows: Softening(**softening.as_dict()) == softening."""
        return {
            "preset": self.preset,
            "tau": {kind: _written(tau) for kind, tau in self.tau.items()},
            "rule": dict(self.rule),
            "overrides": {
                pattern: {kind: [change.rule, _written(change.tau)] for kind, change in changes.items()}
                for pattern, changes in self.overrides.items()
            },
            "scale": self.scale,
        }

    def _default(self, kind: str, rule: str) -> GateRule:
        """A rule that the preset does not use starts from the rule's own temperature."""
        usual = PRESETS[self.preset][kind]
        return usual if usual.rule == rule else GateRule(rule, RULES[kind][rule])


def _restored(made_from: Mapping[str, Any]) -> Softening:
    return Softening(**made_from)


def _temperature(given: object) -> Any:
    """A number as float, "0.6std" and "2rms" as Relative; what is neither as it is."""
    if isinstance(given, Relative):
        return given._replace(factor=float(given.factor)) if isinstance(given.factor, Real) else given
    if isinstance(given, Real) and not isinstance(given, bool):
        number = plain(given)
        return float(number) if is_finite(number) else given
    written = _RELATIVE.fullmatch(given) if isinstance(given, str) else None
    if written is None:
        return given
    try:
        return Relative(float(written[1]), written[2])
    except ValueError:
        return given


def _override(change: Any) -> Override:
    """What was given as a temperature, a rule, or a pair of both; not checked."""
    if isinstance(change, tuple | list) and not isinstance(change, Relative) and len(change) == 2:
        return Override(change[0], _temperature(change[1]))
    tau = _temperature(change)
    return Override(tau, None) if isinstance(tau, str) else Override(None, tau)


def _written(tau: Any) -> Any:
    """A temperature in JSON's types; read back it is the same number."""
    return f"{tau.factor!r}{tau.unit}" if isinstance(tau, Relative) else tau


def _check_kind(kind: str) -> None:
    if kind not in RULES:
        raise SptraceError(f"there is no kind of gate {kind!r}: use one of {', '.join(RULES)}")


def _check_rule(kind: str, rule: object) -> None:
    if rule not in RULES[kind]:
        raise SptraceError(f"{kind} has no rule {rule!r}: use one of {', '.join(RULES[kind])}")


def _check_temperature(kind: str, rule: str, given: object) -> None:
    tau = _temperature(given)
    number = tau.factor if isinstance(tau, Relative) and tau.unit in UNITS else tau
    if not isinstance(number, float) or not COLDEST <= number <= HOTTEST:
        raise SptraceError(
            f"the temperature of {kind} must be a number above 0, or one like '0.6std' or '2rms', not {given!r}: "
            f"rule 'hard' is the limit at 0, and float32 computes with {COLDEST:g} to {HOTTEST:g}"
        )
    if RULES[kind][rule] is None:
        raise SptraceError(
            f"the rule {rule!r} of {kind} has no temperature: leave it out, or give another rule with it"
        )
    if kind == "attention" and isinstance(tau, Relative):
        raise SptraceError("the temperature of attention cannot be relative: give a number")
