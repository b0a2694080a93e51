"""sptrace: an ahead-of-time compiler for explanations of vision networks.

    program = sptrace.compile(model, example, program="soft_pullback")
    program.save("explainer.onnx")
    explainer = sptrace.load("explainer.onnx")
    result = explainer.explain(image)

Loading and running artifacts needs numpy and onnxruntime alone; torch is imported when `compile` is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sptrace import installing
from sptrace.artifact.softening import Softening
from sptrace.errors import SptraceError, SptraceWarning, UnsupportedError, VerificationError
from sptrace.runtime.bound import BoundExplainer
from sptrace.runtime.explainer import Explainer, load
from sptrace.runtime.explanation import Explanation
from sptrace.version import __version__

if TYPE_CHECKING:
    from sptrace.compiler.compile import Program, compile

__all__ = [
    "BoundExplainer",
    "Explainer",
    "Explanation",
    "Program",
    "Softening",
    "SptraceError",
    "SptraceWarning",
    "UnsupportedError",
    "VerificationError",
    "__version__",
    "compile",
    "load",
]


_MODULES = ("photo", "picture")
"""Modules that `import sptrace` offers beside the names, loaded when they are first used; they need Pillow."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"sptrace.runtime.{name}")
    if name not in ("compile", "Program"):
        raise AttributeError(f"module 'sptrace' has no attribute {name!r}")
    try:
        compiler = importlib.import_module("sptrace.compiler.compile")
    except ModuleNotFoundError as error:
        if error.name in ("torch", "onnx", "onnx_ir"):
            raise SptraceError(f"compiling needs {error.name}: {installing.command('compile')}") from error
        raise
    return getattr(compiler, name)
