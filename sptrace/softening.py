"""Softening: which rule and temperature the pullback uses for which kind of gate. Data only, torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from sptrace.errors import SptraceError


class GateRule(NamedTuple):
    """How one kind of gate treats the cotangent; `tau` is None where the rule has no temperature."""

    rule: str
    tau: float | None


RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "relu": ("phi", "sigmoid", "hard"),
        "relu6": ("phi", "relu", "hard"),
        "hardtanh": ("gate", "hard"),
        "max_pool": ("softmax", "hard"),
    }
)
"""The rules that each kind of gate knows, METHOD's own first. `relu6` is any Hardtanh whose lower end is 0."""

WITHOUT_TEMPERATURE = frozenset({"hard", "gate"})

PRESETS: Mapping[str, Mapping[str, GateRule]] = MappingProxyType(
    {
        "paper": {
            "relu": GateRule("phi", 0.6),
            "relu6": GateRule("phi", 0.6),
            "hardtanh": GateRule("gate", None),
            "max_pool": GateRule("softmax", 0.3),
        },
        "hard": {kind: GateRule("hard", None) for kind in RULES},
    }
)
"""`paper`: arXiv 2507.22832, with ReLU6 and Hardtanh (on which it is silent) by y = z * m(z).

`hard`: ordinary gradients.
"""


@dataclass(frozen=True)
class Softening:
    """A preset, and where to depart from it. Checks itself; raises SptraceError with what to write instead.

    Arguments:
        preset: a name of `PRESETS`.
        tau: temperature per kind of gate, above 0, in units of the gate's input; for example {"relu": 0.5}.
        rule: rule per kind of gate, a name of `RULES`; for example {"max_pool": "hard"}.
    """

    preset: str = "paper"
    tau: Mapping[str, float] = field(default_factory=dict)
    rule: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise SptraceError(
                f"there is no softening preset {self.preset!r}: use one of {', '.join(PRESETS)}"
            )
        for kind in [*self.tau, *self.rule]:
            if kind not in RULES:
                raise SptraceError(f"there is no kind of gate {kind!r}: use one of {', '.join(RULES)}")
        for kind, rule in self.rule.items():
            if rule not in RULES[kind]:
                raise SptraceError(f"{kind} has no rule {rule!r}: use one of {', '.join(RULES[kind])}")
        for kind, tau in self.tau.items():
            if not 0 < tau < float("inf"):
                raise SptraceError(
                    f"the temperature of {kind} must be above 0, not {tau}: rule 'hard' is the limit at 0"
                )
            if self._rule(kind) in WITHOUT_TEMPERATURE:
                raise SptraceError(
                    f"the rule {self._rule(kind)!r} of {kind} has no temperature: leave tau out, or use another rule"
                )

    @staticmethod
    def of(softening: Softening | str) -> Softening:
        """`softening` itself, or the preset of that name."""
        return softening if isinstance(softening, Softening) else Softening(softening)

    def _rule(self, kind: str) -> str:
        return self.rule.get(kind, PRESETS[self.preset][kind].rule)

    def gate(self, kind: str) -> GateRule:
        """Rule and temperature for one kind of gate."""
        rule = self._rule(kind)
        if rule in WITHOUT_TEMPERATURE:
            return GateRule(rule, None)
        # A rule that the preset does not use starts from the paper's temperature.
        default = PRESETS[self.preset][kind].tau or PRESETS["paper"][kind].tau
        return GateRule(rule, self.tau.get(kind, default))

    def gates(self) -> dict[str, GateRule]:
        """Rule and temperature for every kind of gate."""
        return {kind: self.gate(kind) for kind in RULES}
