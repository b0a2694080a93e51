"""`sptrace web`: an artifact as a page in the browser."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sptrace.deploy.web import export, server


def web(
    artifact: Annotated[Path, typer.Argument(help="ONNX file written by `sptrace compile`.")],
    port: Annotated[int, typer.Option(help="Port of this machine; 0 takes a free one.")] = 8000,
    folder: Annotated[
        Path | None, typer.Option("--export", help="Write the page there instead, for any static host.")
    ] = None,
) -> None:
    """Explain pictures in the browser: serve a page that runs the artifact there. Pictures stay in the browser."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if folder is not None:
        export(artifact, folder)
        console.print(f"{folder.resolve()}/index.html")
        return
    with tempfile.TemporaryDirectory() as temporary:
        export(artifact, temporary)
        with server(temporary, port) as running:
            console.print(f"http://localhost:{running.server_address[1]}/   (Ctrl-C ends it)")
            try:
                running.serve_forever()
            except KeyboardInterrupt:
                console.print()
