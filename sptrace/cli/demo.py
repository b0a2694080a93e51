"""`sptrace demo`: the whole path on a real network and real photographs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from sptrace import installing
from sptrace.cli.compile import compile_
from sptrace.cli.explain import explain
from sptrace.errors import SptraceError

NETWORK = "efficientnet_lite0"
PHOTOGRAPHS = ("coffee", "rocket")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path(
        "sptrace-demo"
    ),
) -> None:
    """Compile EfficientNet-Lite0 (ImageNet weights) and explain two photographs, step by step."""
    try:
        from skimage import data
    except ModuleNotFoundError as error:
        raise SptraceError(f"the demo needs {error.name}: {installing.command('demo')}") from error
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SptraceError(
            f"cannot create the folder {output}: {error.strerror}; name another with -o"
        ) from error
    console = Console(highlight=False, markup=False, emoji=False)
    artifact = output / f"{NETWORK}.onnx"
    _announce(console, "compile", NETWORK, "-o", str(artifact))
    compile_(NETWORK, artifact)
    written = [artifact]
    for name in PHOTOGRAPHS:
        photograph, picture = output / f"{name}.jpg", output / f"{name}-explained.png"
        Image.fromarray(getattr(data, name)()).save(photograph, quality=95)
        _announce(console, "explain", str(artifact), str(photograph), "-o", str(picture))
        explain(artifact, photograph, picture)
        written.append(picture)
    console.print("\nThe artifact and the pictures:")
    for path in written:
        console.print(f"  {path.resolve()}", soft_wrap=True)


def _announce(console: Console, *words: str) -> None:
    """Show a step as the command that does the same."""
    console.print(f"\n$ sptrace {shlex.join(words)}", soft_wrap=True)
