"""A process that measures one side: `python -m sptrace.bench.worker`, driven by `Worker`.

Each side has a process of its own, so that its peak of memory is its own, and neither its thread pools nor its
allocator are another's.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import BinaryIO

from sptrace.bench.job import Failed, Job, Message, Ready, one_line, peak_megabytes
from sptrace.errors import SptraceError

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Worker:
    """A side in a process of its own; a context, at whose end the process is gone.

    Arguments:
        job: the side, at one batch size.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed with this context
        threads = dict.fromkeys(_THREAD_VARIABLES, str(job.threads))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sptrace.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **threads},
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def start(self) -> Ready | Failed:
        """Load the side, and explain once."""
        try:
            answer: Ready | Failed = self._ask(self.job)
            return answer
        except SptraceError as error:
            return Failed(str(error))

    def run(self) -> float:
        """Explain twice more: seconds of the second time.

        Raises:
            SptraceError: the process has ended, or the side raised.
        """
        answer: float | Failed = self._ask("run")
        if isinstance(answer, Failed):
            raise SptraceError(answer.reason)
        return answer

    def stop(self) -> float:
        """End the process: the peak of its resident set in MB.

        Raises:
            SptraceError: the process has ended before.
        """
        megabytes: float = self._ask("stop")
        return megabytes

    def _ask(self, message: Message) -> Message:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump(message, self._process.stdin)
            self._process.stdin.flush()
            return pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError) as error:
            raise SptraceError(self._why()) from error

    def _why(self) -> str:
        """Why the process has ended: its status, and the last line that it wrote."""
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        said = f": {lines[-1]}" if lines else ": not enough memory?" if status == -9 else ""
        return f"the process ended with status {status}{said}"


def main() -> None:
    """Answer a job and then the orders of `Worker`, over standard input and output."""
    orders = sys.stdin.buffer
    with os.fdopen(os.dup(1), "wb") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        try:
            _serve(orders, answers)
        except EOFError:  # the other process is gone
            sys.exit(1)


def _serve(orders: BinaryIO, answers: BinaryIO) -> None:
    from sptrace.bench.sides import SIDES

    def answer(message: Message) -> None:
        pickle.dump(message, answers)
        answers.flush()

    try:
        job: Job = pickle.load(orders)
        load = SIDES[job.side](job)
        start = time.perf_counter()
        explain = load()
        loaded = time.perf_counter()
        attribution = explain()
        answer(Ready(loaded - start, time.perf_counter() - loaded, attribution))
        del attribution
        while pickle.load(orders) == "run":
            explain()  # so that caches hold this side's weights again, and not those of the side before
            start = time.perf_counter()
            explain()
            answer(time.perf_counter() - start)
        answer(peak_megabytes())
    except EOFError:
        raise
    except Exception as error:  # a library's, of any type
        answer(Failed(one_line(error)))


if __name__ == "__main__":
    main()
