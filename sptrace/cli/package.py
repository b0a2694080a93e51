"""`sptrace package`: an artifact in the form that a model server reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sptrace.deploy import triton


def package(
    artifact: Annotated[Path, typer.Argument(help="ONNX file written by `sptrace compile`.")],
    repository: Annotated[
        Path, typer.Option("--triton", help="Folder of the model repository; other models in it stay.")
    ],
    name: Annotated[str | None, typer.Option(help="Of the model. [default: that of the file]")] = None,
    max_batch: Annotated[
        int, typer.Option(help="How many pictures the server runs at once.")
    ] = triton.MAX_BATCH,
) -> None:
    """Write a model repository for Triton and other servers of the Open Inference Protocol (KServe v2)."""
    typer.echo(triton.write(artifact, repository, name, max_batch))
