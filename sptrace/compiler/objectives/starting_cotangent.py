"""What is pulled back: the nodes that choose one class, channel or direction, and the cotangent to begin with."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from sptrace.artifact.links import Outputs
from sptrace.artifact.neuron import Neuron
from sptrace.compiler.graph.builder import GraphBuilder, placeholder, shape, static_shape, without_data
from sptrace.compiler.graph.facts import Facts, record
from sptrace.compiler.objectives.layout import Layout
from sptrace.errors import SptraceError

aten = torch.ops.aten


def activation(module: fx.GraphModule, explained: fx.Node, neuron: Neuron, how: Layout) -> fx.Node:
    """What a target chooses from, float32 [N, units]: logits, or a layer's channels at a position or summed.

    Arguments:
        module: its graph holds `explained`; nodes are added at the place that is set.
        explained: the logits, or the layer's output.
        neuron: what is explained.
        how: which of its dimensions are what.

    Raises:
        SptraceError: the layer has no such unit or position.
    """
    builder = GraphBuilder(module)
    dims = how.places
    _check(explained, neuron, how)
    with builder.origin(explained, adjoint=False):
        if neuron.position is not None:
            place = explained
            for dim, index in sorted(zip(dims, neuron.position, strict=True), reverse=True):
                place = builder.call(aten.select.int, place, dim, index)
            return place
        return builder.call(aten.sum.dim_IntList, explained, sorted(dims)) if dims else explained


def choose(
    module: fx.GraphModule,
    explained: fx.Node,
    values: fx.Node,
    neuron: Neuron,
    outputs: Outputs,
    how: Layout,
) -> tuple[fx.Node, fx.Node]:
    """Add the input `target` or `direction`.

    Arguments:
        module: its graph gets the input.
        explained: the logits, or the layer's output.
        values: what `activation` gave.
        neuron: what is explained.
        outputs: what the logits are.
        how: which dimensions of `explained` are what.

    Returns:
        What was chosen: the target int64 [N] with every -1 resolved, or the direction float32 [N, units]. And the
        cotangent of `explained`, of its shape.
    """
    graph, builder = module.graph, GraphBuilder(module)
    image = placeholder(graph, "image")
    (units,) = static_shape(values, [1])
    with graph.inserting_after(image):
        given = graph.placeholder("direction" if neuron.direction else "target")
    sizes, dtype = ([units], torch.float32) if neuron.direction else ([], torch.int64)
    record(given, Facts(without_data(*sizes, dtype=dtype), adjoint=True))
    with builder.origin(given, adjoint=True):
        if neuron.direction:
            return given, _everywhere(builder, given, explained, neuron, how)
        if outputs.is_pair and neuron.layer is None:
            chosen = _resolve(builder, given, values, replace(neuron, unit=1))  # class 1 is the one logit
            column = builder.call(aten.to.dtype, builder.reshape(chosen, [-1, 1]), torch.float32)
            direction = builder.call(aten.sub.Tensor, builder.call(aten.mul.Tensor, column, 2.0), 1.0)
        else:
            chosen = _resolve(builder, given, values, neuron)
            column = builder.reshape(chosen, [-1, 1])
            numbers = builder.constant("target_numbers", torch.arange(units).reshape(1, -1))
            is_chosen = builder.call(aten.eq.Tensor, numbers, column)
            direction = builder.call(aten.to.dtype, is_chosen, torch.float32)
        if neuron.objective == "cross_entropy":
            direction = _of_log_probability(builder, direction, values, outputs.link)
        return chosen, _everywhere(builder, direction, explained, neuron, how)


def _of_log_probability(builder: GraphBuilder, direction: fx.Node, values: fx.Node, link: str) -> fx.Node:
    """The derivative of the log-probability: d - softmax(z); or d sigmoid(-d z), where d is -1 for a pair's class 0."""
    if link == "softmax":
        return builder.call(aten.sub.Tensor, direction, builder.call(aten.softmax.int, values, 1))
    against = builder.call(aten.neg.default, builder.call(aten.mul.Tensor, direction, values))
    return builder.call(aten.mul.Tensor, direction, builder.call(aten.sigmoid.default, against))


def _resolve(builder: GraphBuilder, target: fx.Node, values: fx.Node, neuron: Neuron) -> fx.Node:
    """The unit that `target` names, int64 [N]: -1 stands for the neuron's own, or for the largest."""
    unnamed = builder.call(aten.lt.Scalar, target, 0)
    if neuron.unit is not None:
        return builder.call(aten.where.ScalarSelf, unnamed, neuron.unit, target)
    return builder.call(aten.where.self, unnamed, builder.call(aten.argmax.default, values, 1), target)


def _everywhere(
    builder: GraphBuilder, direction: fx.Node, explained: fx.Node, neuron: Neuron, how: Layout
) -> fx.Node:
    """The adjoint of `activation`: the direction at every place of the layer, or at the neuron's position alone."""
    dims = how.places
    if not dims:
        return direction
    sizes = [1 if dim in dims else size for dim, size in enumerate(shape(explained))]
    places = torch.ones(
        [static_shape(explained, [dim])[0] if dim in dims else 1 for dim in range(len(sizes))]
    )
    if neuron.position is not None:
        places = torch.zeros_like(places)
        places[
            tuple(neuron.position[dims.index(dim)] if dim in dims else 0 for dim in range(places.ndim))
        ] = 1
    return builder.call(
        aten.mul.Tensor, builder.reshape(direction, sizes), builder.constant("layer_places", places)
    )


def _check(explained: fx.Node, neuron: Neuron, how: Layout) -> None:
    dims = how.places
    sizes = [0, *static_shape(explained, range(1, len(shape(explained))))]
    units = sizes[how.channels]
    if neuron.unit is not None and neuron.unit >= units:
        raise SptraceError(f"the layer {neuron.layer!r} has no unit {neuron.unit}: give 0 to {units - 1}")
    if neuron.position is None:
        return
    given = ", ".join(map(str, neuron.position))
    if not dims:
        raise SptraceError(
            f"the layer {neuron.layer!r} gives [N, {units}], without positions: leave position out"
        )
    extent = [sizes[dim] for dim in dims]
    if len(extent) != len(neuron.position):
        wanted = "row and column" if len(extent) == 2 else "the number of one token"
        raise SptraceError(
            f"the position ({given}) is none of {neuron.layer!r}, which gives "
            f"[N, {', '.join(map(str, sizes[1:]))}]: give {wanted}"
        )
    if any(index >= size for index, size in zip(neuron.position, extent, strict=True)):
        last = ", ".join(str(size - 1) for size in extent)
        raise SptraceError(f"the layer {neuron.layer!r} has no position ({given}): the last one is ({last})")
