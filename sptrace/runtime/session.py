"""Starting onnxruntime on the execution providers that a user names, or saying why it does not start."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import onnxruntime

from sptrace.artifact.numbers import is_whole, plain
from sptrace.errors import SptraceError

Provider = str | tuple[str, dict[str, Any]]
"""The name of an execution provider, or its name and options."""

MOST_THREADS = 1024
"""No machine has more cores than that for one operator; onnxruntime starts as many as it is told, or dies."""
_INSTALL = dict.fromkeys(
    ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
    "; pip install onnxruntime-gpu in place of onnxruntime",
)


def start(
    path: str | os.PathLike[str], providers: Sequence[Provider] | None, threads: int | None, batch: int | None
) -> onnxruntime.InferenceSession:
    """A session of onnxruntime on these providers and no others; arguments and errors as of `sptrace.load`."""
    chosen: Sequence[Provider] = ["CPUExecutionProvider"] if providers is None else _providers(providers)
    names = [_name(provider) for provider in chosen]
    _require_providers(names, onnxruntime.get_available_providers(), "is not part of this onnxruntime")
    session = _session(path, chosen, threads, batch)
    _require_providers(names, session.get_providers(), "did not start (onnxruntime's own message says why)")
    return session


def _providers(given: object) -> list[Provider]:
    """Names, or pairs of a name and options."""
    chosen = list(given) if isinstance(given, list | tuple) else []
    if not chosen or not all(
        isinstance(one, str)
        or (
            isinstance(one, list | tuple)
            and [type(part) for part in one[:2]] == [str, dict]
            and len(one) == 2
        )
        for one in chosen
    ):
        raise SptraceError(
            f"providers must be a list of names, or of pairs of a name and a dict of options, not {given!r}"
        )
    return chosen


def _name(provider: Provider) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _session(
    path: str | os.PathLike[str], providers: Sequence[Provider], threads: int | None, batch: int | None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = (
        3  # errors; its warnings concern those who write the file, not those who run it
    )
    threads, batch = plain(threads), plain(batch)
    if threads is not None:
        if not (is_whole(threads) and 1 <= threads <= MOST_THREADS):
            raise SptraceError(f"cannot run on {threads!r} threads: give 1 to {MOST_THREADS}")
        options.intra_op_num_threads = threads
    if batch is not None:
        if not (is_whole(batch) and batch >= 1):
            raise SptraceError(f"cannot take {batch!r} images at a time: give 1 or more")
        options.add_free_dimension_override_by_name("N", batch)
    # One block laid out for all tensors holds more at its peak than they need, and is no faster on a CPU.
    options.enable_mem_pattern = any(_name(provider) != "CPUExecutionProvider" for provider in providers)
    try:
        # Its fallback would move the session to the CPU when a provider fails, at the start or later.
        return onnxruntime.InferenceSession(
            os.fspath(path), options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # onnxruntime's exceptions have no common base
        reason = str(error).partition("\n")[0]
        raise SptraceError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {reason}") from error


def _require_providers(wanted: Sequence[str], present: Sequence[str], problem: str) -> None:
    for name in wanted:
        if name not in present:
            advice = _INSTALL.get(name, "")
            raise SptraceError(
                f"the execution provider {name} {problem}: available are {', '.join(present)}{advice}"
            )
