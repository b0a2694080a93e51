"""What tests of artifacts outside Python need beside Python."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def require(present: object, what: str) -> None:
    """Skip the test where a tool is missing; fail where SPTRACE_CONSUMERS=required says that it must be there."""
    if present:
        return
    if os.environ.get("SPTRACE_CONSUMERS") == "required":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"needs {what}")


def folder(variable: str, what: str) -> Path:
    """The folder that an environment variable names."""
    named = os.environ.get(variable)
    require(named, f"{what} (in the folder that {variable} names)")
    return Path(str(named))


def onnxruntime_library(package: Path) -> Path:
    """The shared library in an installed onnxruntime package."""
    (library,) = (package / "capi").glob("libonnxruntime.so.*")
    return library
