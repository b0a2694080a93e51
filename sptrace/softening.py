"""Softening: which rule and temperature the pullback uses for which kind of gate. Data only, torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import NamedTuple

from sptrace.errors import SptraceError


class GateRule(NamedTuple):
    """How one kind of gate treats the cotangent; `tau` is None where the rule has no temperature."""

    rule: str
    tau: float | None


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
PRESETS: Mapping[str, Mapping[str, GateRule]] = MappingProxyType(
    {
        "paper": _PAPER,
        "hard": _HARD,
        "excitation": {**_PAPER, "relu": GateRule("sigmoid", 0.3)},
        "guided": {**_HARD, "relu": GateRule("guided", None)},
    }
)
"""`paper`: arXiv 2507.22832, and by y = z * m(z) where it is silent. `hard`: ordinary gradients.

`excitation`: the method's older form, sigma(z / 0.3) for ReLUs. `guided`: guided backpropagation (Springenberg et al.,
arXiv 1412.6806).
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
            if not isinstance(tau, Real) or not 0 < tau < float("inf"):
                raise SptraceError(
                    f"the temperature of {kind} must be a number above 0, not {tau!r}: "
                    "rule 'hard' is the limit at 0"
                )
            if RULES[kind][self._rule(kind)] is None:
                raise SptraceError(
                    f"the rule {self._rule(kind)!r} of {kind} has no temperature: leave tau out, or use another rule"
                )

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

    def gate(self, kind: str) -> GateRule:
        """Rule and temperature for one kind of gate."""
        rule = self._rule(kind)
        default = RULES[kind][rule]
        if default is None:
            return GateRule(rule, None)
        usual = PRESETS[self.preset][kind]
        # A rule that the preset does not use starts from the rule's own temperature.
        tau = self.tau.get(kind, usual.tau if usual.rule == rule and usual.tau is not None else default)
        return GateRule(rule, float(tau))

    def gates(self) -> dict[str, GateRule]:
        """Rule and temperature for every kind of gate."""
        return {kind: self.gate(kind) for kind in RULES}
