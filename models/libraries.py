"""Using other people's libraries: their noise kept away, their failed downloads told in one line."""

from __future__ import annotations

import hashlib
import io
import logging
import re
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from urllib.parse import urlparse

import torch

from sptrace.errors import SptraceError

# Enough for a slow server, and not too long for a user behind a firewall that drops packets.
TIMEOUT_SECONDS = 15
# In the names of published files: the beginning of their SHA-256.
_CHECKSUM = re.compile(r"-([0-9a-f]{8,})\.")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep prints, warnings and log lines of a library off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextmanager
def downloading(model: str, url: str) -> Iterator[None]:
    """Fail fast and in one line when pretrained weights cannot be had.

    Raises:
        SptraceError: in place of the OSError or RuntimeError (a wrong checksum) of the download.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    try:
        with quiet():
            yield
    except (OSError, RuntimeError) as error:
        raise SptraceError(
            f"the weights of {model} could not be downloaded from {url} ({first_line(error)}): "
            "fetch that file on another machine and give it with --weights FILE"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def hub_file(url: str) -> Path:
    """Download a file into torch.hub's cache unless it is there already; its name ends in its checksum."""
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        checksum = _CHECKSUM.search(path.name)
        torch.hub.download_url_to_file(url, str(path), checksum[1] if checksum else None, progress=False)
    return path


def fingerprint(path: Path) -> str:
    """Give a file's name and the first twelve digits of its SHA-256, by which an auditor knows it again."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return f"{path.name} sha256:{digest.hexdigest()[:12]}"


def is_file_of(url: str, fingerprint: str) -> bool:
    """Is that the fingerprint of the file at a URL whose name holds its checksum, such as `resnet50-11ad3fa6.pth`?"""
    checksum = _CHECKSUM.search(Path(urlparse(url).path).name)
    return checksum is not None and fingerprint.rpartition("sha256:")[2].startswith(checksum[1][:12])


def first_line(error: BaseException) -> str:
    """Find the first line of an error's message that says anything; the error's type if none does."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def shown(name: str) -> str:
    """A name from a file, fit for one line of a message."""
    return name if name.isprintable() and len(name) <= 200 else ascii(name)[:200]
