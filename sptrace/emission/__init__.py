"""From a torch.fx graph of ATen ops to one ONNX file.

A table of emitters, grouped by family, and the walk that applies them.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir
from torch import fx

from sptrace.emission import convolution, elementwise, shape
from sptrace.emission.builder import EMITTERS, IR_VERSION, OPSET, OnnxBuilder
from sptrace.errors import UnsupportedError
from sptrace.version import __version__

OUTPUTS = ("attribution", "logits")


def emit(module: fx.GraphModule, name: str) -> onnx.ModelProto:
    """Write an assembled program as an ONNX model, and let the ONNX checker pass it.

    Arguments:
        module: as `sptrace.assemble` gives it.
        name: the graph's name in the file.

    Raises:
        UnsupportedError: the graph contains an op that has no emitter.
    """
    builder = OnnxBuilder(module)
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            inputs.append(builder.input(node))
        elif node.op == "get_attr":
            builder.weight(node)
        elif node.op == "output":
            outputs = [
                builder.output(result, name) for result, name in zip(node.args[0], OUTPUTS, strict=True)
            ]
        elif node.target in EMITTERS:
            builder.emit(node, EMITTERS[node.target])
        else:
            where = node.meta.get("source", "source unknown")
            raise UnsupportedError(
                f"there is no ONNX emitter for {node.target} ({where}): add one to sptrace.emission"
            )
    graph = ir.Graph(
        inputs,
        outputs,
        nodes=builder.nodes,
        initializers=builder.initializers,
        opset_imports={"": OPSET},
        name=name,
    )
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="sptrace", producer_version=__version__)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto


__all__ = ["EMITTERS", "convolution", "elementwise", "emit", "shape"]
