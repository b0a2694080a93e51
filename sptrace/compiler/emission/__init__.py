"""From a torch.fx graph of ATen ops to one ONNX file.

A table of emitters, grouped by family, and the walk that applies them.
"""

from __future__ import annotations

import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission import (
    convolution,
    elementwise,
    functions,
    gates,
    generation,
    normalisation,
    saving,
    selection,
    shape,
    trigonometry,
)
from sptrace.compiler.emission.builder import EMITTERS, IR_VERSION
from sptrace.compiler.emission.walk import write
from sptrace.compiler.graph.results import results
from sptrace.version import __version__


def emit(module: fx.GraphModule, name: str) -> ir.Model:
    """Write an assembled program as an ONNX model, and let the ONNX checker pass it.

    Arguments:
        module: as `compiler.assemble` gives it.
        name: the graph's name in the file.

    Raises:
        UnsupportedError: the graph contains an op that has no emitter.
    """
    graph = write(module, name, list(results(module.graph)))
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="sptrace", producer_version=__version__)
    saving.check(model)
    return model


__all__ = [
    "EMITTERS",
    "convolution",
    "elementwise",
    "emit",
    "functions",
    "gates",
    "generation",
    "normalisation",
    "saving",
    "selection",
    "shape",
    "trigonometry",
]
