"""The machine that is measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from sptrace.bench.report import Machine

PACKAGES = ("onnxruntime", "torch", "openvino", "numpy")


def machine() -> Machine:
    """This machine, and the versions of the libraries that are installed."""
    return Machine(_processor(), cores(), {name: found for name in PACKAGES if (found := _version(name))})


def cores() -> int:
    """Of the processor, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
