"""An artifact as a web page: everything runs in the browser, and pictures stay there."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sptrace.artifact.description import METADATA_KEY, Description
from sptrace.artifact.files import folder_replacing
from sptrace.artifact.onnx_file import outline, without_defaults
from sptrace.artifact.programs import program_kind
from sptrace.deploy.web import onnxruntime_web
from sptrace.errors import SptraceError

PAGE = Path(__file__).parent / "page"


def export(artifact: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Write the page and the artifact as a folder that any static host serves.

    Threads need the host to send the headers of `Handler`; without them the page runs on one.

    Arguments:
        artifact: an ONNX file written by sptrace, float32 or uint8, that explains a class.
        folder: is created; files of an earlier export are replaced.

    Raises:
        SptraceError: the artifact explains something else or is none, the folder cannot be written, or
            onnxruntime-web cannot be downloaded.
    """
    described, settings = _described(Path(artifact))
    runtime = onnxruntime_web.files()
    with folder_replacing(folder) as target:
        (target / "ort").mkdir()
        for path in PAGE.iterdir():
            shutil.copyfile(path, target / path.name)
        for name in onnxruntime_web.FILES:
            shutil.copyfile(runtime / name, target / "ort" / name)
        (target / "explainer.onnx").write_bytes(without_defaults(artifact, settings))
        (target / "explainer.json").write_text(json.dumps(described), encoding="utf-8")


def server(folder: str | os.PathLike[str], port: int) -> ThreadingHTTPServer:
    """A server of an exported folder, on this machine alone; `serve_forever` runs it.

    Raises:
        SptraceError: the port is taken.
    """
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=os.fspath(folder)))
    except (OSError, OverflowError) as error:
        raise SptraceError(f"cannot serve on port {port} ({error}): give another with --port") from error


class Handler(SimpleHTTPRequestHandler):
    """Serves files with the two headers without which browsers give a page no threads."""

    extensions_map = {  # noqa: RUF012
        **SimpleHTTPRequestHandler.extensions_map,
        ".mjs": "text/javascript",
        ".js": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        """Add the headers."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _described(artifact: Path) -> tuple[dict[str, Any], list[str]]:
    """What the page has to know, and which inputs have defaults. Browsers' onnxruntime reads no metadata."""
    file = outline(artifact)
    if METADATA_KEY not in file.metadata:
        raise SptraceError(
            f"{artifact} was not written by sptrace: compile the network with `sptrace compile`"
        )
    description = Description.from_json(file.metadata[METADATA_KEY])
    outputs = [value.name for value in file.outputs]
    names = [value.name for value in file.inputs]
    if "target" not in names or "activation" in outputs:
        raise SptraceError("the page explains classes: compile without a layer or a direction")
    if description.precision != "fp32":
        raise SptraceError("the page runs in float32: compile with precision fp32")
    dtypes = {value.name: value.dtype for value in file.inputs}
    settings = [name for name in names if name not in ("image", "target")]
    options = program_kind(description.program).options
    described = {
        "description": description.as_dict(),
        "outputs": outputs,
        "settings": {
            name: {"dtype": dtypes[name], "default": description.settings[name], "help": options[name].help}
            for name in settings
        },
    }
    return described, settings
