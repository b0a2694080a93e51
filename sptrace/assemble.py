"""A program as one torch.fx graph: normalisation, network, target, pullback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sptrace import passes
from sptrace.artifact import GateCount, LayerScale, Preprocessing
from sptrace.calibration import calibrate
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
        scales: what relative temperatures refer to, where that was measured when compiling.
        classes: number of logits.
        input_range: the values of black and white in `image`.
    """

    module: fx.GraphModule
    gates: tuple[GateCount, ...]
    scales: tuple[LayerScale, ...]
    classes: int
    input_range: tuple[float, float]


def assemble(
    module: fx.GraphModule,
    preprocessing: Preprocessing,
    softening: Softening,
    objective: str = "logit",
    calibration: Tensor | None = None,
) -> Assembled:
    """Turn a captured network into its pullback program; `module` is used up.

    Arguments:
        module: as `sptrace.capture` gives it.
        preprocessing: its mean, std and input_range become the program's first step.
        softening: rules and temperatures of the gates.
        objective: what is pulled back: the target's "logit", or its log-probability ("cross_entropy").
        calibration: float32 [M, 3, H, W]; on these pictures relative temperatures are fixed. None: they stay relative.

    Raises:
        UnsupportedError: an op has no rule.
    """
    _normalize_input(module, preprocessing)
    passes.run(passes.PREPARE, module)
    gates = passes.soften(module, softening)
    scales = () if calibration is None else calibrate(module, calibration)
    graph = module.graph
    output = next(node for node in graph.nodes if node.op == "output")
    logits = output.args[0]
    image = placeholder(graph, "image")
    with graph.inserting_before(output):
        cotangent = _direction(module, logits, objective)
        attribution = pull_back(module, logits, cotangent, image)
    output.args = ((attribution, logits),)
    output.meta = {"names": ("attribution", "logits")}
    (classes,) = static_shape(logits, [1])
    passes.run(passes.LOWER, module)
    return Assembled(module, gates, scales, classes, preprocessing.input_range)


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


def resolve_target(builder: GraphBuilder, target: fx.Node, logits: fx.Node) -> fx.Node:
    """The class that `target` names, int64 [N]: -1 stands for the largest of the logits."""
    predicted = builder.call(aten.argmax.default, logits, 1)
    return builder.call(aten.where.self, builder.call(aten.lt.Scalar, target, 0), predicted, target)


def _direction(module: fx.GraphModule, logits: fx.Node, objective: str) -> fx.Node:
    """Adds the input `target`; returns the direction that it names, float32 [N, classes].

    That is 1 at the target and 0 elsewhere for its logit; for its log-probability the softmax of the logits is
    subtracted.
    """
    graph, builder = module.graph, GraphBuilder(module)
    image = placeholder(graph, "image")
    with graph.inserting_after(image):
        target = graph.placeholder("target")
    target.meta = {"values": without_data(dtype=torch.int64), "path": "", "adjoint": True}
    (classes,) = static_shape(logits, [1])
    with builder.origin(target, adjoint=True):
        chosen = resolve_target(builder, target, logits)
        column = builder.reshape(chosen, [-1, 1])
        numbers = builder.constant("target.classes", torch.arange(classes).reshape(1, -1))
        one_hot = builder.call(aten.to.dtype, builder.call(aten.eq.Tensor, numbers, column), torch.float32)
        if objective == "logit":
            return one_hot
        return builder.call(aten.sub.Tensor, one_hot, builder.call(aten.softmax.int, logits, 1))
