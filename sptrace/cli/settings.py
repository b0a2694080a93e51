"""Reading NAME=VALUE from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from sptrace.artifact.programs import Setting
from sptrace.errors import SptraceError

EXAMPLES = {
    "--tau": "relu=0.6",
    "--rule": "relu=phi",
    "--override": "layer4.*:relu=0.3",
    "--option": "steps=10",
}


def read_settings(options: Sequence[str] | None) -> dict[str, Setting]:
    """Settings of a program from NAME=VALUE: numbers are read as such."""
    return {name: _setting(text) for name, text in pairs(options, "--option").items()}


def _setting(text: str) -> Setting:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return text


def pairs(options: Sequence[str] | None, flag: str) -> dict[str, str]:
    """Name and text of every option; SptraceError for one that has no `=`."""
    found = {}
    for option in options or ():
        kind, equals, setting = option.partition("=")
        if not equals or not kind or not setting:
            raise SptraceError(f"{flag} {option}: write NAME=VALUE, for example {EXAMPLES[flag]}")
        found[kind] = setting
    return found
