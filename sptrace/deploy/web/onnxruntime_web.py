"""The browser's onnxruntime: one pinned version from the npm registry, kept on this machine."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from sptrace.errors import SptraceError

VERSION = "1.30.0"
FILES = (
    "ort.wasm.min.mjs",
    "ort-wasm-simd-threaded.mjs",
    "ort-wasm-simd-threaded.wasm",
    "ort.webgpu.min.mjs",
    "ort-wasm-simd-threaded.asyncify.mjs",
    "ort-wasm-simd-threaded.asyncify.wasm",
)
_SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
_REGISTRY = "https://registry.npmjs.org"


def files() -> Path:
    """The folder that holds `FILES`; the first call downloads them (33 MB).

    The registry is `NPM_CONFIG_REGISTRY` of the environment, or else npm's own; the folder is below `XDG_CACHE_HOME`,
    or else `~/.cache`.

    Raises:
        SptraceError: the registry cannot be reached, or gives something else than the pinned package.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sptrace"
    folder = cache / f"onnxruntime-web-{VERSION}"
    if all((folder / name).is_file() for name in FILES):
        return folder
    package = _download()
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != _SHA512:
        raise SptraceError(
            f"what the npm registry gives for onnxruntime-web {VERSION} is not that package: try again"
        )
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=cache) as temporary,
            tarfile.open(fileobj=io.BytesIO(package)) as archive,
        ):
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None
                (Path(temporary) / name).write_bytes(member.read())
            folder.mkdir(exist_ok=True)
            for name in FILES:
                (Path(temporary) / name).replace(folder / name)
    except OSError as error:
        raise SptraceError(
            f"cannot keep onnxruntime-web in {cache}: {error.strerror}; name another folder as XDG_CACHE_HOME"
        ) from error
    return folder


def _download() -> bytes:
    registry = os.environ.get("NPM_CONFIG_REGISTRY") or _REGISTRY
    address = f"{registry.rstrip('/')}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    try:
        with urllib.request.urlopen(address, timeout=60) as answer:
            package: bytes = answer.read()
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise SptraceError(
            f"cannot download {address} ({error}): connect once, or name a registry as NPM_CONFIG_REGISTRY"
        ) from error
    return package
