"""What reads files, each with its corpus: fed with inputs changed at random, it may succeed or raise an SptraceError.

    cd tests && nice -n 19 python -m fuzz.readers

is the long run, of 360 000 inputs in one process (readers.cpp is the one of the C++ program). Inputs that find a fault
are written to a folder; those that once did lie in the corpus.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from fuzz.mutations import Mutation, of_bytes, of_json, of_protobuf, of_safetensors, of_zip

from sptrace.artifact.description import Description, Preprocessing
from sptrace.artifact.onnx_file import outline, without_defaults
from sptrace.cli.explain import _read_direction
from sptrace.errors import SptraceError
from sptrace.evaluation import data
from sptrace.models import exported, labels, pt2_sizes, state_dict
from sptrace.runtime import photo

CORPUS = Path(__file__).parent / "corpus"
SECONDS = 20
"""What one input may take."""
MEMORY = 6 << 30
"""What the long run may take."""


@dataclass(frozen=True)
class Reader:
    """Something that reads files.

    Arguments:
        read: is given a path.
        mutation: of the inputs.
        suffix: of the file.
        count: of inputs in the long run.
    """

    read: Callable[[Path], object]
    mutation: Mutation
    suffix: str
    count: int


def _onnx(path: Path) -> None:
    outline(path)
    without_defaults(path, ["steps"])


def _arrays(path: Path) -> None:
    data._arrays(path, Preprocessing(size=(2, 2)), 3)


def _expression(path: Path) -> None:
    try:
        pt2_sizes.evaluate(path.read_text(errors="replace"), (2, 3, 16, 24), {"s1": 7})
    except (ValueError, KeyError) as error:  # as it is documented to
        raise SptraceError(str(error)) from error


def _within(name: str) -> Mutation:
    return of_bytes


def _in_pt2(name: str) -> Mutation:
    return of_json if name.endswith(".json") else of_bytes


READERS = {
    "description": Reader(
        lambda path: Description.from_json(path.read_text(errors="replace")), of_json, ".json", 60_000
    ),
    "onnx": Reader(_onnx, of_protobuf, ".onnx", 60_000),
    "expression": Reader(_expression, of_bytes, ".txt", 100_000),
    "labels": Reader(lambda path: labels.read(str(path)), of_bytes, ".txt", 20_000),
    "labels_json": Reader(lambda path: labels.read(str(path)), of_json, ".json", 20_000),
    "labels_csv": Reader(data._labels, of_bytes, ".csv", 10_000),
    "photograph": Reader(photo.read, of_bytes, ".img", 30_000),
    "direction": Reader(_read_direction, of_bytes, ".npy", 10_000),
    "arrays": Reader(_arrays, of_zip(_within), ".npz", 5_000),
    "safetensors": Reader(state_dict.read, of_safetensors, ".safetensors", 30_000),
    "pickle": Reader(state_dict.read, of_zip(_within), ".pth", 10_000),
    "pt2": Reader(
        lambda path: exported.load(str(path), weights=None, size=None), of_zip(_in_pt2), ".pt2", 5_000
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What became of a reader's inputs: how many there were, how many it refused, and what else it raised."""

    inputs: int
    refused: int
    faults: dict[str, bytes]


def seeds(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def inputs(reader: Reader, corpus: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """The corpus itself, then changes of it."""
    yield from corpus[:count]
    rng = random.Random(seed)
    for _ in range(count - len(corpus)):
        content = rng.choice(corpus)
        for _ in range(1 + rng.randrange(4)):
            content = reader.mutation(rng, content, corpus)
        yield content


def run(name: str, count: int, seed: int, folder: Path) -> Outcome:
    """Feed a reader. A fault is known by where it was raised; of each the first input is kept."""
    reader, refused, done = READERS[name], 0, 0
    path = folder / f"input{reader.suffix}"
    faults: dict[str, bytes] = {}
    for content in inputs(reader, seeds(name), count, seed):
        path.write_bytes(content)
        done += 1
        try:
            with warnings.catch_warnings(), _at_most(SECONDS):
                warnings.simplefilter("ignore")
                reader.read(path)
        except SptraceError as error:
            refused += 1
            if len(str(error).splitlines()) != 1:
                faults.setdefault(f"a message of several lines: {error}", content)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            faults.setdefault(
                f"{type(error).__name__} at {frame.filename}:{frame.lineno}: {str(error)[:100]}", content
            )
    return Outcome(done, refused, faults)


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(signal: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0, help="times the number of inputs of the long run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=READERS, default=list(READERS))
    parser.add_argument("--faults", type=Path, default=Path("faults"))
    given = parser.parse_args()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
    total = found = 0
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        for name in given.only:
            start = time.perf_counter()
            outcome = run(name, round(READERS[name].count * given.scale), given.seed, Path(folder))
            total, found = total + outcome.inputs, found + len(outcome.faults)
            seconds = time.perf_counter() - start
            print(f"{name}: {outcome.inputs} inputs, {outcome.refused} refused, {seconds:.0f} s", flush=True)
            for number, (fault, content) in enumerate(outcome.faults.items()):
                given.faults.mkdir(parents=True, exist_ok=True)
                (given.faults / f"{name}-{number}{READERS[name].suffix}").write_bytes(content)
                print(f"  {fault}", flush=True)
    print(f"{total} inputs, {found} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
