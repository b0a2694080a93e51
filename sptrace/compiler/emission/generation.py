"""Tensors that are made from numbers alone."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from torch import fx

from sptrace.compiler.emission.builder import OnnxBuilder, emits
from sptrace.compiler.graph.builder import aten, complaint
from sptrace.errors import UnsupportedError


@emits(aten.arange.default)
def arange(onnx: OnnxBuilder, node: fx.Node, end: int | fx.Node, **options: object) -> ir.Value:
    """Range from 0."""
    if isinstance(end, fx.Node):
        raise UnsupportedError(complaint(node, "pictures are numbered"))
    start, stop, step = (np.array(number, dtype=np.int64) for number in (0, end, 1))
    return onnx.op("Range", start, stop, step)
