"""Interleaved measurements: A B C A B C ..., so that a machine whose speed changes is unfair to nobody."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from sptrace.bench.job import OURS, PEAK, Failed, Job, Ready
from sptrace.bench.sides import BEFOREHAND, PEAK_GFLOP
from sptrace.bench.worker import Worker
from sptrace.errors import SptraceError

WARM_UP = 2
"""Unmeasured explanations of each side after its first."""

PAUSE_SECONDS = 0.03
"""Before each side's turn: another side's threads go on spinning for some milliseconds after their work."""

TOLERANCE = 1e-3
"""How far a peer's attribution may be from ours; it is far below what another method would give."""


@dataclass(frozen=True)
class Row:
    """One side at one batch size.

    Arguments:
        batch: number of pictures of an explanation.
        side: "sptrace", or the name of a peer.
        median_ms, min_ms, max_ms: of an explanation of the whole batch, in milliseconds, over all rounds.
        ratio: the side's median divided by ours; above 1 we are faster.
        gflop: of the artifact, for the whole batch; a multiplication and an addition count as two. None: unknown.
        gflops: what our side reaches, in GFLOP per second; None for the others, which may compute something else.
        share_of_peak: that, divided by what a product of large matrices reaches in the same run.
        load_seconds: from files to a side that is ready, without importing libraries.
        first_seconds: the first explanation.
        peak_megabytes: the largest resident set of the side's process, in 10^6 bytes.
        difference: to our attribution, as a share of its largest value (of its norm, if a gate is hard).
        why: in one line, why the side has no numbers; "" if it has them.
    """

    batch: int
    side: str
    median_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    ratio: float | None = None
    gflop: float | None = None
    gflops: float | None = None
    share_of_peak: float | None = None
    load_seconds: float | None = None
    first_seconds: float | None = None
    peak_megabytes: float | None = None
    difference: float | None = None
    why: str = ""


Progress = Callable[[str, float], None]
"""Called with a few words and the share of the batch size's work that is done, 0 to 1."""


def measure(
    folder: Path,
    batch: int,
    peers: Sequence[str],
    *,
    threads: int,
    rounds: int,
    gflop: float | None = None,
    by_norm: bool = False,
    tolerance: float = TOLERANCE,
    unavailable: Mapping[str, str] | None = None,
    progress: Progress = lambda words, done: None,
) -> tuple[list[Row], float]:
    """Measure the artifact and its peers at one batch size.

    Arguments:
        folder: with the files of `sptrace.bench.job`.
        batch: number of pictures; the folder's input has at least as many.
        peers: names of `sptrace.bench.job.PEERS`.
        threads: of each side.
        rounds: how often each side is measured.
        gflop: of the artifact at this batch size.
        by_norm: are attributions compared by the L2 norm, and not by their largest value?
        tolerance: a peer whose attribution is further from ours is not measured.
        unavailable: why peers cannot take part, where that is known before.
        progress: see `Progress`.

    Returns:
        A row for each side, ours first, and the peak of the machine in GFLOP per second.

    Raises:
        SptraceError: the artifact itself cannot be run.
    """
    sides = [OURS, *peers, PEAK]
    rows = {side: Row(batch, side, why=(unavailable or {}).get(side, "")) for side in sides}
    rows[OURS] = replace(rows[OURS], gflop=gflop)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        expected: NDArray[np.float32] | None = None
        for number, side in enumerate(sides):
            if rows[side].why:
                continue
            progress(f"batch {batch}: preparing {side}", 0.5 * number / len(sides))
            worker, ready = _started(stack, Job(side, folder, batch, threads))
            if isinstance(ready, Failed):
                if side in (OURS, PEAK):
                    raise SptraceError(f"cannot measure {side} at batch size {batch}: {ready.reason}")
                rows[side] = replace(rows[side], why=ready.reason)
                continue
            expected = ready.attribution if side == OURS else expected
            rows[side] = _compared(rows[side], ready, expected, by_norm, tolerance)
            if not rows[side].why:
                workers[side] = worker
        for number in range(-WARM_UP, rounds):
            words = "warming up" if number < 0 else f"round {number + 1} of {rounds}"
            progress(f"batch {batch}: {words}", 0.5 + 0.5 * (number + WARM_UP) / (rounds + WARM_UP))
            for side, worker in list(workers.items()):
                time.sleep(PAUSE_SECONDS)
                try:
                    elapsed = worker.run()
                except SptraceError as error:
                    rows[side] = replace(rows[side], why=str(error))
                    del workers[side]
                    continue
                if number >= 0:
                    seconds[side].append(elapsed)
        for side, worker in workers.items():
            rows[side] = _timed(replace(rows[side], peak_megabytes=worker.stop()), seconds[side])
    progress(f"batch {batch}: done", 1.0)
    for side in (OURS, PEAK):
        if rows[side].why:
            raise SptraceError(f"cannot measure {side} at batch size {batch}: {rows[side].why}")
    peak = PEAK_GFLOP / median(seconds[PEAK])
    return [_related(rows[side], rows[OURS], peak) for side in sides if side != PEAK], peak


def difference(given: NDArray[np.float32], wanted: NDArray[np.float32], by_norm: bool) -> float:
    """Largest difference divided by largest value; or norm of the difference divided by norm, the largest over samples.

    Infinite if the shapes are not the same or `given` is not finite.
    """
    if given.shape != wanted.shape or not np.isfinite(given).all():
        return float("inf")
    if by_norm:
        away = np.linalg.norm((given - wanted).reshape(len(given), -1), axis=1)
        norm = np.linalg.norm(wanted.reshape(len(wanted), -1), axis=1)
        return float((away / np.where(norm > 0, norm, 1.0)).max())
    return float(np.abs(given - wanted).max()) / (float(np.abs(wanted).max()) or 1.0)


def _started(stack: ExitStack, job: Job) -> tuple[Worker, Ready | Failed]:
    """A process of the side, that has explained once; before it the process whose work it needs."""
    if job.side in BEFOREHAND:
        with Worker(replace(job, side=BEFOREHAND[job.side])) as beforehand:
            answer = beforehand.start()
        if isinstance(answer, Failed):
            return beforehand, answer
    worker = stack.enter_context(Worker(job))
    return worker, worker.start()


def _compared(
    row: Row, ready: Ready, expected: NDArray[np.float32] | None, by_norm: bool, tolerance: float
) -> Row:
    """The row with what is known before anything is measured; a peer that disagrees is not measured."""
    row = replace(row, load_seconds=ready.load_seconds, first_seconds=ready.first_seconds)
    if row.side in (OURS, PEAK) or expected is None:
        return row
    assert ready.attribution is not None
    away = difference(ready.attribution, expected, by_norm)
    disagrees = f"its attribution differs from ours by {away:.1e}, more than {tolerance:.0e}: not measured"
    return replace(row, difference=away, why="" if away <= tolerance else disagrees)


def _timed(row: Row, seconds: Sequence[float]) -> Row:
    return replace(row, median_ms=1e3 * median(seconds), min_ms=1e3 * min(seconds), max_ms=1e3 * max(seconds))


def _related(row: Row, ours: Row, peak: float) -> Row:
    """The row with what follows from ours, and from the peak in GFLOP per second."""
    if row.median_ms is None or ours.median_ms is None:
        return row
    if row.side != OURS or row.gflop is None:
        return replace(row, ratio=row.median_ms / ours.median_ms)
    gflops = row.gflop / row.median_ms * 1e3
    return replace(row, ratio=1.0, gflops=gflops, share_of_peak=gflops / peak)
