"""What a process that measures one side has to know, and what it answers. Torch-free."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OURS, PEAK = "sptrace", "peak"
PEERS = ("eager", "compile", "aotinductor", "openvino")
"""What an artifact can be measured against; `sptrace.bench.sides` holds how each is made."""

ARTIFACT, NETWORK, INPUT = "artifact.onnx", "network.pt", "input.npz"
"""Files of a job's folder: the artifact; the network with what it was compiled for; the pictures and targets."""


@dataclass(frozen=True)
class Job:
    """One side at one batch size.

    Arguments:
        side: a name of `sptrace.bench.sides.SIDES`.
        folder: where the artifact, the network and the pictures are.
        batch: number of pictures.
        threads: that the side may use.
    """

    side: str
    folder: Path
    batch: int
    threads: int

    def input(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Pictures float32 [batch, 3, H, W] and targets int64 [batch]."""
        with np.load(self.folder / INPUT) as file:
            return file["image"][: self.batch], file["target"][: self.batch]

    def exported(self) -> Path:
        """Where the torch.fx program of this batch size is, exported with torch.export."""
        return self.folder / f"program-{self.batch}.pt2"

    def package(self) -> Path:
        """Where AOTInductor's package of it is."""
        return self.folder / f"package-{self.batch}.pt2"


@dataclass(frozen=True)
class Ready:
    """A side has explained its pictures for the first time.

    Arguments:
        load_seconds: reading its files and getting ready, without importing libraries.
        first_seconds: the first explanation; for compilers that work at the first call, their work.
        attribution: float32 [N, 3, H, W]; None of a side that explains nothing.
    """

    load_seconds: float
    first_seconds: float
    attribution: NDArray[np.float32] | None


@dataclass(frozen=True)
class Failed:
    """A side cannot do it.

    Arguments:
        reason: why, in one line.
    """

    reason: str


def one_line(error: BaseException) -> str:
    """An exception in one line: its type unless it is our own, and the first line of its message."""
    from sptrace.errors import SptraceError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no message"]
    return lines[0] if isinstance(error, SptraceError) else f"{type(error).__name__}: {lines[0]}"


def peak_megabytes() -> float:
    """The largest resident set that this process has had so far, in MB (10^6 bytes)."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            # Not getrusage: its maximum is inherited from the process that started this one.
            peak = next(line.split()[1] for line in status if line.startswith("VmHWM:"))
        return int(peak) * 1024 / 1e6
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


Message = Any
"""Job, then "run" any number of times, then "stop" to the process; Ready or Failed, seconds, megabytes from it."""
