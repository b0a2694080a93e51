"""`sptrace programs`: what can be computed."""

from __future__ import annotations

from collections.abc import Mapping

import typer

from sptrace.artifact.programs import NEURON, PROGRAMS, Option


def programs() -> None:
    """List the programs: what they compute, where they are defined, and their options."""
    width = max(map(len, PROGRAMS))
    for name, kind in PROGRAMS.items():
        typer.echo(f"{name:{width}}  {kind.summary} [{kind.source}]{_options(_own(kind.options))}")
    typer.echo("\nWhat is explained (programs with a layer of their own take direction alone):")
    width = max(map(len, NEURON))
    for name, option in NEURON.items():
        typer.echo(f"  {name:{width}}  {option.help} (default: {option.default})")
    typer.echo("\nOptions with * can also be given to `sptrace explain`: --option NAME=VALUE.")


def _own(options: Mapping[str, Option]) -> dict[str, Option]:
    """Without those that all programs share."""
    return {name: option for name, option in options.items() if NEURON.get(name) is not option}


def _options(options: Mapping[str, Option]) -> str:
    listed = (f"{name}{'*' if about.at_run_time else ''}={about.default}" for name, about in options.items())
    return f" ({', '.join(listed)})" if options else ""
