"""Resizing is linear in each direction: two products with constant matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sptrace.graph import GraphBuilder, Target, static_shape

aten = torch.ops.aten

RESIZINGS: set[Target] = {
    getattr(getattr(aten, name), overload)
    for name in (
        "upsample_nearest2d",
        "_upsample_nearest_exact2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
        "_upsample_bilinear2d_aa",
        "_upsample_bicubic2d_aa",
    )
    for overload in ("default", "vec")
}
NEAREST = {aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec}


def canonicalize_resizing(module: fx.GraphModule) -> int:
    """Rewrite upsampling and downsampling; returns how many.

    1. nearest, by a whole number  ->  upsample_nearest2d(x, size)
    2. nearest, bilinear, bicubic, with or without align_corners or antialias  ->  matmul(rows, matmul(x, columns))

    The matrices are what the op itself makes of the unit vectors.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target in RESIZINGS:
            with builder.replacing(node):
                builder.replace(node, _resized(builder, node, *node.args))
            count += 1
    return count


def _resized(builder: GraphBuilder, node: fx.Node, x: fx.Node, *options: object) -> fx.Node:
    sizes, outputs = static_shape(x, [2, 3]), static_shape(node, [2, 3])
    whole = all(out % size == 0 for size, out in zip(sizes, outputs, strict=True))
    if node.target in NEAREST and whole:
        return builder.call(aten.upsample_nearest2d.default, x, outputs)
    rows, columns = (_matrix(node, dim, options) for dim in (0, 1))
    if sizes[1] != outputs[1]:
        x = builder.call(aten.matmul.default, x, builder.constant("resizing.columns", columns.T.contiguous()))
    if sizes[0] != outputs[0]:
        x = builder.call(aten.matmul.default, builder.constant("resizing.rows", rows), x)
    return x


def _matrix(node: fx.Node, dim: int, options: Sequence[object]) -> Tensor:
    """[outputs, inputs] of one direction: resize a column (or row) of ones in each place, the other way constant."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    size = static_shape(x, [2 + dim])[0]
    height, width = static_shape(x, [2, 3])
    units = torch.eye(size, dtype=torch.float64)
    pictures = units[:, None, :, None] if dim == 0 else units[:, None, None, :]
    pictures = pictures.expand(size, 1, height, width).contiguous()
    assert callable(node.target)
    resized = node.target(pictures, *options)[:, 0]
    answer: Tensor = resized[:, :, 0] if dim == 0 else resized[:, 0, :]
    return answer.T.float().contiguous()
