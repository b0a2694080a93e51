"""The programs: what is computed from a network's pullback. Torch-free data; `sptrace.assemble` builds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sptrace.errors import SptraceError
from sptrace.softening import Softening


@dataclass(frozen=True)
class ProgramKind:
    """One line about a program, and whether its gates stay hard.

    Arguments:
        summary: what the program computes, in one line.
        source: where it is defined.
        hard: True if the program is defined with hard gates, whatever softening is asked for.
    """

    summary: str
    source: str
    hard: bool = False

    def softening(self, asked: Softening) -> Softening:
        """The softening that the program uses: the one asked for, or none."""
        return Softening("hard") if self.hard else asked


PROGRAMS: Mapping[str, ProgramKind] = MappingProxyType(
    {
        "soft_pullback": ProgramKind(
            "the pullback of the target's logit, gates softened", "arXiv 2507.22832, section 3"
        ),
        "gradient": ProgramKind(
            "the gradient of the target's logit", "Simonyan et al., arXiv 1312.6034", hard=True
        ),
    }
)


def program_kind(name: str) -> ProgramKind:
    """The program of that name; SptraceError if there is none."""
    if name not in PROGRAMS:
        raise SptraceError(f"there is no program {name!r}: use one of {', '.join(PROGRAMS)}")
    return PROGRAMS[name]
