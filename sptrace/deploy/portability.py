"""Which runtimes have the operators of an artifact, from what was measured of them or read in their documentation.

Torch-free. The data are in portability.json, each runtime's with its source and date.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from sptrace.artifact.onnx_file import OnnxFile


@dataclass(frozen=True)
class Portability:
    """What one runtime does with an artifact.

    Arguments:
        runtime: its name.
        version, date, source: of the data: the runtime's version, when it was measured or read, and how.
        supported: number of the artifact's operator types that the runtime has.
        missing: operator types that it has not, with the number of nodes of each.
        limited: operator types that it has with a limit that matters here, and the limit.
        unknown: operator types that nothing is known of.
        otherwise: what happens to what is missing.
        note: what else is to be known about the runtime; "" if nothing.
    """

    runtime: str
    version: str
    date: str
    source: str
    supported: int
    missing: dict[str, int]
    limited: dict[str, str]
    unknown: tuple[str, ...]
    otherwise: str
    note: str


def portability(file: OnnxFile) -> list[Portability]:
    """What each known runtime does with an artifact.

    Arguments:
        file: the artifact's outline. Of another opset than the data's, nothing is known.
    """
    data = _data()
    known = set(data["operators"]) if file.opsets == {"": data["opset"]} else set()
    return [_portability(file, known, runtime) for runtime in data["runtimes"]]


def _portability(file: OnnxFile, known: set[str], runtime: dict[str, Any]) -> Portability:
    missing = {name: count for name, count in file.operators.items() if name in known & set(runtime["lacks"])}
    unknown = tuple(name for name in file.operators if name not in known)
    limited = {
        name: limit["note"]
        for name, limit in runtime["limits"].items()
        if name in file.operators and file.most_outputs[name] > limit.get("outputs", 0)
    }
    return Portability(
        runtime=runtime["name"],
        version=runtime["version"],
        date=runtime["date"],
        source=runtime["source"],
        supported=len(file.operators) - len(missing) - len(unknown),
        missing=missing,
        limited={name: note for name, note in limited.items() if name not in unknown},
        unknown=unknown,
        otherwise=runtime["otherwise"],
        note=runtime.get("note", ""),
    )


@cache
def _data() -> dict[str, Any]:
    text = resources.files("sptrace.deploy").joinpath("portability.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
