"""From a torch.fx graph of ATen ops to one ONNX file.

A table of emitters, grouped by family, and the walk that applies them.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from torch import fx

from sptrace.emission import (
    convolution,
    elementwise,
    functions,
    gates,
    generation,
    normalisation,
    shape,
)
from sptrace.emission.builder import EMITTERS, IR_VERSION
from sptrace.emission.walk import write
from sptrace.errors import UnsupportedError
from sptrace.version import __version__

LARGEST = 2**31 - 2**26
"""Bytes of weights. A protobuf message ends at 2 GiB; 64 MiB are left for the nodes."""


def emit(module: fx.GraphModule, name: str) -> onnx.ModelProto:
    """Write an assembled program as an ONNX model, and let the ONNX checker pass it.

    Arguments:
        module: as `sptrace.assemble` gives it.
        name: the graph's name in the file.

    Raises:
        UnsupportedError: the graph contains an op that has no emitter, or its weights do not fit into a file.
    """
    output = next(node for node in module.graph.nodes if node.op == "output")
    graph = write(module, name, output.meta["names"])
    size = sum(
        given.const_value.nbytes for given in graph.initializers.values() if given.const_value is not None
    )
    if size > LARGEST:
        raise UnsupportedError(
            f"the weights take {size / 1e9:.1f} GB, and one ONNX file holds {LARGEST / 1e9:.1f} GB, the limit of its "
            "format: compile a smaller network"
        )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="sptrace", producer_version=__version__)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


__all__ = [
    "EMITTERS",
    "convolution",
    "elementwise",
    "emit",
    "functions",
    "gates",
    "generation",
    "normalisation",
    "shape",
]
