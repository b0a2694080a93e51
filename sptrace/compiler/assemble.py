"""A pullback as one torch.fx graph: normalisation, network, the neuron explained, the adjoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from sptrace import passes
from sptrace.artifact.description import GateCount, HardOp, LayerScale, Preprocessing
from sptrace.artifact.links import LOGITS, Outputs
from sptrace.artifact.neuron import LOGIT, Neuron
from sptrace.artifact.softening import Softening
from sptrace.compiler.calibration import calibrate
from sptrace.compiler.graph.builder import GraphBuilder, forget_constants, placeholder, static_shape
from sptrace.compiler.graph.results import give
from sptrace.compiler.independence import require_independence
from sptrace.compiler.left_hard import left_hard
from sptrace.compiler.objectives import starting_cotangent
from sptrace.compiler.objectives.layout import NO_LAYER, Layout, as_map
from sptrace.compiler.pullback import pull_back

aten = torch.ops.aten


@dataclass(frozen=True)
class Assembled:
    """A pullback in torch.fx.

    Arguments:
        module: its inputs are image float32 [N, 3, H, W] and either target int64 [N] or direction float32 [N, units].
            Its outputs: attribution, of the image's shape; logits [N, classes]; chosen, the target with every -1
            resolved or the direction itself; with a layer activation [N, units], that which the neuron is one of;
            for class activation maps features [N, C, rows, columns], the layer's output, and their cotangent.
        cotangent: the node of `module` that the adjoint begins with.
        gates: how many gates were softened, and how.
        scales: what relative temperatures refer to, where that was measured when compiling.
        left_hard: what is piecewise and no gate.
        classes: number of logits.
        input_range: the values of black and white in `image`.
        parameters: for every input that a parameter was lifted to, the path of the constant and the parameter's name.
    """

    module: fx.GraphModule
    cotangent: fx.Node
    gates: tuple[GateCount, ...]
    scales: tuple[LayerScale, ...]
    left_hard: tuple[HardOp, ...]
    classes: int
    input_range: tuple[float, float]
    parameters: dict[str, tuple[str, str]] = field(default_factory=dict)


def assemble(
    module: fx.GraphModule,
    preprocessing: Preprocessing,
    softening: Softening,
    neuron: Neuron = LOGIT,
    calibration: Tensor | None = None,
    lift: Mapping[str, str] | None = None,
    outputs: Outputs = LOGITS,
    how: Layout = NO_LAYER,
) -> Assembled:
    """Turn a captured network into its pullback; `module` is used up.

    Arguments:
        module: as `capture.from_torch` gives it, with the neuron's layer if that has one. With a layer that is not the
            neuron's, the layer's output and its cotangent are given too.
        preprocessing: its mean, std and input_range become the program's first step.
        softening: rules and temperatures of the gates.
        neuron: what is pulled back.
        calibration: float32 [M, 3, H, W]; on these pictures relative temperatures are fixed. None: they stay relative.
        lift: paths of constants that are parameters, with their names; they become inputs. None: they stay constants.
        outputs: what the logits are.
        how: the layout of the layer's output.

    Raises:
        SptraceError: the layer has no such unit or position.
        UnsupportedError: an op has no rule.
    """
    names = lift or {}
    lifted = passes.lift_parameters(module, names)
    _normalize_input(module, preprocessing)
    passes.run(passes.PREPARE, module)
    constants = [module.get_buffer(path) for path in lifted.values()]
    require_independence(module, preprocessing.input_range, constants)
    gates = passes.soften(module, softening)
    hard = left_hard(module, softening)
    scales = () if calibration is None else calibrate(module, calibration, lifted.values())
    passes.run(passes.REPARAMETRIZE, module)
    graph = module.graph
    output: Any = graph.output_node()
    logits, features = output.args[0] if isinstance(output.args[0], tuple) else (output.args[0], None)
    image = placeholder(graph, "image")
    with graph.inserting_before(output):
        explained = logits if neuron.layer is None else features
        of_explained = NO_LAYER if neuron.layer is None else how
        activation = starting_cotangent.activation(module, explained, neuron, of_explained)
        chosen, cotangent = starting_cotangent.choose(
            module, explained, activation, neuron, outputs, of_explained
        )
        named = {
            "attribution": pull_back(module, explained, cotangent, image),
            "logits": logits,
            "chosen": chosen,
        }
        if neuron.layer is not None:
            named["activation"] = activation
        elif features is not None:
            with _hard_where_guided(graph):
                at_layer = {"features": features, "cotangent": pull_back(module, logits, cotangent, features)}
            named |= _as_maps(module, at_layer, how)
    give(graph, named)
    (classes,) = static_shape(logits, [1])
    passes.run(passes.LOWER, module)
    forget_constants(module, lifted.values())
    parameters = {place: (path, names[path]) for place, path in lifted.items()}
    return Assembled(module, cotangent, gates, scales, hard, classes, preprocessing.input_range, parameters)


def _as_maps(module: fx.GraphModule, at_layer: Mapping[str, fx.Node], how: Layout) -> dict[str, fx.Node]:
    """The layer's features and their cotangent as [N, C, rows, columns]."""
    builder, maps = GraphBuilder(module), {}
    for name, node in at_layer.items():
        with builder.origin(node, adjoint=name == "cotangent"):
            maps[name] = as_map(builder, node, how)
    return maps


@contextmanager
def _hard_where_guided(graph: fx.Graph) -> Iterator[None]:
    """Within this context gates of rule `guided` are pulled back as `hard`: a gate's value is the same by any rule.

    So is the map of guided Grad-CAM an ordinary Grad-CAM (Selvaraju et al., arXiv 1610.02391).
    """
    guided = [node for node in graph.nodes if node.kwargs.get("rule") == "guided"]
    for node in guided:
        node.update_kwarg("rule", "hard")
    try:
        yield
    finally:
        for node in guided:
            node.update_kwarg("rule", "guided")


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
