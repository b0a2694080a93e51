"""Resizing is linear in each direction: two products with constant matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value
from sptrace.compiler.graph.facts import Target

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
OF_ROWS_AND_VOLUMES: set[Target] = {
    aten.upsample_linear1d.default,
    aten.upsample_trilinear3d.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact1d.default,
    aten._upsample_nearest_exact3d.default,
}
NEAREST = {aten.upsample_nearest2d.default, aten.upsample_nearest2d.vec}


def canonicalize_resizing(module: fx.GraphModule) -> int:
    """Rewrite upsampling and downsampling; returns how many.

    1. nearest, by a whole number  ->  upsample_nearest2d(x, size)
    2. nearest, bilinear, bicubic, with or without align_corners or antialias  ->  matmul(rows, matmul(x, columns))

    3. the same of rows and volumes  ->  matmul(x, matrix) along each dimension

    The matrices are what the op itself makes of the unit vectors.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        resized = _resized if node.target in RESIZINGS else _along_each
        if node.target in RESIZINGS | OF_ROWS_AND_VOLUMES:
            with builder.replacing(node):
                builder.replace(node, resized(builder, node, *node.args))
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


def _along_each(builder: GraphBuilder, node: fx.Node, x: fx.Node, *options: object) -> fx.Node:
    """A row or a volume, one dimension after the other."""
    rank = value(x).ndim
    for dim in range(2, rank):
        matrix = _matrix(node, dim - 2, options)
        if matrix.shape[0] == matrix.shape[1]:
            continue
        # Exchanged with the last dimension and back: the same permutation twice.
        turned = builder.call(aten.transpose.int, x, dim, rank - 1) if dim < rank - 1 else x
        product = builder.call(
            aten.matmul.default, turned, builder.constant("resizing.along", matrix.T.contiguous())
        )
        x = builder.call(aten.transpose.int, product, dim, rank - 1) if dim < rank - 1 else product
    return x


def _matrix(node: fx.Node, dim: int, options: Sequence[object]) -> Tensor:
    """[outputs, inputs] of one direction: resize a one in each place of it, the other directions constant."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    sizes = static_shape(x, range(2, value(x).ndim))
    units = torch.eye(sizes[dim], dtype=torch.float64)
    alone = [sizes[dim] if other == dim else 1 for other in range(len(sizes))]
    pictures = units.reshape(sizes[dim], 1, *alone).expand(sizes[dim], 1, *sizes).contiguous()
    assert callable(node.target)
    resized: Tensor = node.target(pictures, *options)[:, 0]
    for other in reversed(range(len(sizes))):
        if other != dim:
            resized = resized.select(1 + other, 0)
    return resized.T.float().contiguous()
