"""Cold start: how long a fresh process takes to its first explanation, and how much memory.

`python -m sptrace.bench.cold SIDE FOLDER THREADS` is such a process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sptrace.bench.job import OURS, Job, one_line, peak_megabytes
from sptrace.errors import SptraceError

RUNS = 3
SIDES = (OURS, "eager")


@dataclass(frozen=True)
class Cold:
    """A side's cold start: medians over its processes.

    Arguments:
        side: "sptrace" (Python, numpy, onnxruntime and the artifact), or "eager" (Python, torch, the network read as
            one pickle, which is the least that building it can take, and its gates softened).
        seconds: from the start of the process to the first explanation of one picture.
        peak_megabytes: the largest resident set until then, in 10^6 bytes.
    """

    side: str
    seconds: float
    peak_megabytes: float


def measure(
    folder: Path,
    threads: int,
    runs: int = RUNS,
    sides: Sequence[str] = SIDES,
    progress: Callable[[str], None] = lambda words: None,
) -> list[Cold]:
    """Start processes of each side in turn.

    Arguments:
        folder: with the files of `sptrace.bench.job`.
        threads: that each process may use.
        runs: how many processes of each side.
        sides: names of `SIDES`.
        progress: called with a few words before each process.

    Raises:
        SptraceError: a process failed.
    """
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for number in range(runs):
        for side in sides:
            progress(f"cold start {number + 1} of {runs}: {side}")
            found[side].append(_start(side, folder, threads))
    return [
        Cold(side, median(s for s, _ in pairs), median(m for _, m in pairs)) for side, pairs in found.items()
    ]


def _start(side: str, folder: Path, threads: int) -> tuple[float, float]:
    """Seconds to the first explanation, and megabytes until then."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "sptrace.bench.cold", side, str(folder), str(threads)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            answer = process.stdout.readline().strip()
            seconds = time.perf_counter() - start
        finally:
            process.kill()
    try:
        return seconds, float(answer)
    except ValueError:
        raise SptraceError(f"the cold start of {side} failed: {answer or 'the process ended'}") from None


def main() -> None:
    """Explain one picture, and print the peak of memory, or in one line why not."""
    from sptrace.bench.sides import SIDES as MAKERS

    side, folder, threads = sys.argv[1:]
    try:
        MAKERS[side](Job(side, Path(folder), 1, int(threads)))()()
    except Exception as error:  # a library's, of any type
        print(one_line(error), flush=True)
        return
    print(peak_megabytes(), flush=True)


if __name__ == "__main__":
    main()
