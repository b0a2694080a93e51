"""A program as one torch.fx graph: normalisation, network, target, pullback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sptrace import passes
from sptrace.artifact import GateCount, Preprocessing
from sptrace.graph import GraphBuilder, placeholder, static_shape, without_data
from sptrace.pullback import pull_back
from sptrace.softening import Softening

aten = torch.ops.aten


@dataclass(frozen=True)
class Assembled:
    """A program in torch.fx.

    Arguments:
        module: inputs image float32 [N, 3, H, W] and target int64 [N] (-1: the predicted class); outputs
            attribution, of the image's shape, and logits [N, classes].
        gates: how many gates were softened, and how.
        classes: number of logits.
    """

    module: fx.GraphModule
    gates: tuple[GateCount, ...]
    classes: int


def assemble(module: fx.GraphModule, preprocessing: Preprocessing, softening: Softening) -> Assembled:
    """Turn a captured network into its pullback program; `module` is used up.

    Raises:
        UnsupportedError: an op has no rule.
    """
    _normalize_input(module, preprocessing)
    passes.run(passes.PREPARE, module)
    gates = passes.soften(module, softening)
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    logits = output.args[0]
    image = placeholder(graph, "image")
    with graph.inserting_before(output):
        cotangent = _one_hot(module, logits)
        attribution = pull_back(module, logits, cotangent, image)
    output.args = ((attribution, logits),)
    (classes,) = static_shape(logits, [1])
    passes.run(passes.LOWER, module)
    return Assembled(module, gates, classes)


def _normalize_input(module: fx.GraphModule, preprocessing: Preprocessing) -> None:
    """The program's own first step: the image's range to [0, 1], then (pixel - mean) / std.

    Together that is one factor and one offset a channel.
    """
    if preprocessing.mean is None or preprocessing.std is None:
        return
    low, high = preprocessing.input_range
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    factor = 1.0 / ((high - low) * std)
    offset = -low * factor - torch.tensor(preprocessing.mean, dtype=torch.float64) / std
    image = placeholder(module.graph, "image")
    builder = GraphBuilder(module)
    readers = list(image.users)
    with module.graph.inserting_before(image.next), builder.origin(image, adjoint=False):
        scaled = builder.call(aten.mul.Tensor, image, builder.constant("input.factor", _per_channel(factor)))
        normalized = builder.call(
            aten.add.Tensor, scaled, builder.constant("input.offset", _per_channel(offset))
        )
    image.replace_all_uses_with(normalized, delete_user_cb=lambda user: user in readers)


def _per_channel(numbers: Tensor) -> Tensor:
    return numbers.reshape(1, -1, 1, 1).float()


def _one_hot(module: fx.GraphModule, logits: fx.Node) -> fx.Node:
    """Adds the input `target`; returns the direction that it names, float32 [N, classes]: 1 at the target, else 0."""
    graph, builder = module.graph, GraphBuilder(module)
    image = placeholder(graph, "image")
    with graph.inserting_after(image):
        target = graph.placeholder("target")
    target.meta = {"values": without_data(dtype=torch.int64), "path": "", "adjoint": True}
    (classes,) = static_shape(logits, [1])
    with builder.origin(target, adjoint=True):
        predicted = builder.call(aten.argmax.default, logits, 1)
        chosen = builder.call(aten.where.self, builder.call(aten.lt.Scalar, target, 0), predicted, target)
        column = builder.reshape(chosen, [-1, 1])
        numbers = builder.constant("target.classes", torch.arange(classes).reshape(1, -1))
        return builder.call(aten.to.dtype, builder.call(aten.eq.Tensor, numbers, column), torch.float32)
