"""Factors per channel beside a linear layer or a convolution become part of its weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import GraphBuilder, parameter, permutation, shape, static_shape, value
from sptrace.compiler.graph.facts import facts
from sptrace.passes.fold_batch_norms import CONVOLUTIONS

aten = torch.ops.aten


def fold_scales(module: fx.GraphModule) -> int:
    """Rewrite factors that are constants; returns how many.

    1. mul(linear(x, w, b), c), the linear layer read by nothing else          ->  linear(x, w c, b c)
       the same of a convolution; permutations may lie between, and if c is one number, reshapes too
    2. layer_norm(x, shape, g, h), read by linear layers alone: linear(y, w, b)  ->  layer_norm(x, shape),
       linear(y, w g, b + w h); permutations that leave the last dimension where it is may lie between

    LayerScale is 1. The pullback is taken afterwards, so it multiplies by these factors no more either. Products are
    computed in float64. A weight that is read elsewhere too stays as it is, for else the file would hold it twice.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target == aten.mul.Tensor:
            count += _fold_factor(builder, node)
        elif node.target == aten.layer_norm.default:
            count += _fold_norm(builder, node)
    module.graph.eliminate_dead_code()
    return count


def _fold_factor(builder: GraphBuilder, product: fx.Node) -> bool:
    x, factor = product.args
    if not isinstance(x, fx.Node) or (isinstance(factor, fx.Node) and x.op == "get_attr"):
        x, factor = factor, x
    if not isinstance(x, fx.Node) or shape(x) != shape(product):
        return False
    if isinstance(factor, fx.Node):
        if factor.op != "get_attr":
            return False
        scale = parameter(builder.module, factor)
    else:
        scale = torch.tensor(factor, dtype=torch.float64)
    layer = x
    scale = scale.reshape([1] * (value(x).ndim - scale.ndim) + list(scale.shape))
    while len(layer.users) == 1 and layer.target not in CONVOLUTIONS | {aten.linear.default}:
        order = permutation(layer)
        if order is not None:
            scale = scale.permute([order.index(dim) for dim in range(len(order))])
        elif layer.target == aten.reshape.default and scale.numel() == 1:
            scale = scale.reshape([1] * value(layer.all_input_nodes[0]).ndim)
        else:
            return False
        layer = layer.all_input_nodes[0]
    if len(layer.users) != 1 or not _has_own_constants(layer):
        return False
    channel = value(layer).ndim - 1 if layer.target == aten.linear.default else 1
    if scale.numel() != scale.shape[channel]:
        return False
    outputs = scale.double().reshape(-1).expand(static_shape(layer, [channel]))
    weight, bias = weights(layer)
    assert weight is not None
    data = parameter(builder.module, weight).double()
    scaled = data * outputs.reshape([-1] + [1] * (data.ndim - 1))
    shift = None if bias is None else parameter(builder.module, bias).double() * outputs
    _exchange(builder, layer, scaled, shift)
    builder.replace(product, x)
    return True


def _fold_norm(builder: GraphBuilder, norm: fx.Node) -> bool:
    x, sizes, *affine = norm.args[:4]
    given = [item for item in affine if item is not None]
    layers = list(_readers(norm))
    if not given or len(sizes) != 1 or not layers:  # type: ignore[arg-type]
        return False
    if any(item.op != "get_attr" for item in given):  # type: ignore[union-attr]
        return False
    if not all(layer.target == aten.linear.default and _has_own_constants(layer) for layer in layers):
        return False
    weight, bias = weights(norm, 2)
    for layer in layers:
        rows, own = weights(layer)
        assert rows is not None
        data = parameter(builder.module, rows).double()
        shift = None if own is None else parameter(builder.module, own).double()
        if bias is not None:
            moved = data @ parameter(builder.module, bias).double()
            shift = moved if shift is None else shift + moved
        if weight is not None:
            data = data * parameter(builder.module, weight).double()
        _exchange(builder, layer, data, shift)
    norm.args = (x, sizes, None, None, *norm.args[4:])
    return True


def weights(layer: fx.Node, first: int = 1) -> tuple[fx.Node | None, fx.Node | None]:
    """Weight and bias, which stand at `first` and behind it among the arguments."""
    weight, bias = (*layer.args, None, None)[first : first + 2]
    assert weight is None or isinstance(weight, fx.Node)
    assert bias is None or isinstance(bias, fx.Node)
    return weight, bias


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """What reads a node, itself or through permutations that keep the last dimension."""
    for user in node.users:
        order = permutation(user) if user.op == "call_function" else None
        if order is not None and order[-1] == len(order) - 1:
            yield from _readers(user)
        else:
            yield user


def _has_own_constants(layer: fx.Node) -> bool:
    return layer.target in CONVOLUTIONS | {aten.linear.default} and all(
        item.op == "get_attr" and len(item.users) == 1 for item in layer.all_input_nodes[1:]
    )


def _exchange(builder: GraphBuilder, layer: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
    """Give a layer other weights, and a bias if it had none."""
    path = facts(layer).path or layer.name
    old_weight, old_bias = weights(layer)
    assert old_weight is not None
    with builder.replacing(layer):
        builder.replace_constant(old_weight, f"{path}.folded_weight", weight.float())
        if bias is None:
            return
        if old_bias is not None:
            builder.replace_constant(old_bias, f"{path}.folded_bias", bias.float())
        else:
            new_bias = builder.constant(f"{path}.folded_bias", bias.float())
            layer.args = (*layer.args[:2], new_bias, *layer.args[3:])
