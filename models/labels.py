"""Class names. Needs no torch."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from sptrace.artifact.labels import of_mapping
from sptrace.errors import SptraceError

IMAGENET = "imagenet"


def imagenet() -> tuple[str, ...]:
    """Read the names of the 1000 ImageNet classes, in the order every ImageNet-1k network uses.

    Source: `torchvision.models._meta._IMAGENET_CATEGORIES` (torchvision 0.29.1, BSD-3-Clause).
    """
    text = files("sptrace.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def read(source: str) -> tuple[str, ...]:
    """Read class names from a file, one per class.

    Arguments:
        source: a text file with one name a line; or a .json file: a list of names, or a mapping from index to name,
            alone or under "id2label", as in a config.json of transformers. "imagenet" stands for ImageNet's 1000.

    Raises:
        SptraceError: there is no such file, or it is something else.
    """
    if source == IMAGENET:
        return imagenet()
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
        return _of_json(json.loads(text), source) if path.suffix == ".json" else _of_lines(text, source)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise SptraceError(
            f"cannot read the labels {source} ({reason}): give a text file with one name a line, a .json file, "
            f"or {IMAGENET}"
        ) from error


def _of_lines(text: str, source: str) -> tuple[str, ...]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines or not lines:
        number = lines.index("") + 1 if lines else 1
        raise SptraceError(f"line {number} of {source} is empty: write one name a line")
    return tuple(lines)


def _of_json(data: object, source: str) -> tuple[str, ...]:
    if isinstance(data, dict) and isinstance(data.get("id2label"), dict):
        data = data["id2label"]
    names = of_mapping(data) if isinstance(data, dict) else data
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise SptraceError(
            f"{source} holds no labels: write a list of names, or a mapping from 0, 1, ... to names"
        )
    return tuple(names)
