"""LSTM, GRU and RNN become their steps, one after another: ordinary products, sigmoids and tangents."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from sptrace.compiler.graph.builder import GraphBuilder, shape, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.compiler.graph.sizes import BatchSize
from sptrace.errors import UnsupportedError
from sptrace.passes.fold_constants import fold_constants

aten = torch.ops.aten

State = tuple[fx.Node, ...]
"""What is handed from step to step: (h, c) of an LSTM, else (h,); [rows, width], or [2, rows, width] of both ways."""


def unroll_recurrences(module: fx.GraphModule) -> int:
    """Rewrite; returns how many.

    1. lstm(x, (h, c), weights ...), gru, rnn_tanh, rnn_relu  ->  their formulas, step by step and layer by layer
    2. lstm_cell(x, (h, c), weights ...), gru_cell ...        ->  one step

    What reads the input is one product for all steps. The two ways of a bidirectional layer run side by side, as a
    batch of two matrices; those of an RNN with ReLUs run apart, for each ReLU is a gate of its own.

    Declines with UnsupportedError where the number of steps depends on the batch.
    """
    builder = GraphBuilder(module)
    count = 0
    for node in list(module.graph.nodes):
        if node.target not in LAYERS and node.target not in CELLS:
            continue
        with builder.replacing(node):
            if node.target in CELLS:
                results = _cell(builder, CELLS[node.target], *node.args)
            else:
                results = _layers(builder, node, LAYERS[node.target], *node.args, **node.kwargs)
        if node.target in CELLS and len(results) == 1:
            builder.replace(node, results[0])
        else:
            for reader in list(node.users):
                assert reader.target is operator.getitem
                builder.replace(reader, results[reader.args[1]])
            module.graph.erase_node(node)
        count += 1
    if count:
        module.graph.eliminate_dead_code()
        fold_constants(module)
    return count


@dataclass(frozen=True)
class _Weights:
    """Of one way through one layer, [outputs, inputs]; in PyTorch's order."""

    of_input: fx.Node
    of_state: fx.Node
    input_bias: fx.Node | None = None
    state_bias: fx.Node | None = None
    projection: fx.Node | None = None


@dataclass(frozen=True)
class _Kind:
    """One kind of recurrence.

    Arguments:
        step: (builder, what the input gives, state, weights of the state, its bias, projection) to the next state.
        states: how many tensors a state has.
        joint: whether both ways may run as a batch of two.
        keeps_bias: whether the bias of the state stays apart from that of the input.
    """

    step: Callable[..., State]
    states: int = 1
    joint: bool = True
    keeps_bias: bool = False


def _lstm_step(
    builder: GraphBuilder,
    given: fx.Node,
    state: State,
    weight: fx.Node,
    bias: None,
    projection: fx.Node | None,
) -> State:
    """c' = sigma(f) c + sigma(i) tanh(g), h' = sigma(o) tanh(c'); the four stand side by side."""
    h, c = state
    width = value(c).shape[-1]
    sums = builder.call(aten.add.Tensor, given, builder.call(aten.matmul.default, h, weight))
    i, f, g, o = (_part(builder, sums, index, width) for index in range(4))
    kept = builder.call(aten.mul.Tensor, builder.call(aten.sigmoid.default, f), c)
    new = builder.call(
        aten.mul.Tensor, builder.call(aten.sigmoid.default, i), builder.call(aten.tanh.default, g)
    )
    c = builder.call(aten.add.Tensor, kept, new)
    h = builder.call(
        aten.mul.Tensor, builder.call(aten.sigmoid.default, o), builder.call(aten.tanh.default, c)
    )
    if projection is not None:
        h = builder.call(aten.matmul.default, h, projection)
    return h, c


def _gru_step(
    builder: GraphBuilder,
    given: fx.Node,
    state: State,
    weight: fx.Node,
    bias: fx.Node | None,
    projection: None,
) -> State:
    """n = tanh(x_n + sigma(r) h_n), h' = n + sigma(z) (h - n); r, z and n stand side by side."""
    (h,) = state
    width = value(h).shape[-1]
    own = builder.call(aten.matmul.default, h, weight)
    if bias is not None:
        own = builder.call(aten.add.Tensor, own, bias)
    r, z = (
        builder.call(
            aten.sigmoid.default,
            builder.call(
                aten.add.Tensor, _part(builder, given, index, width), _part(builder, own, index, width)
            ),
        )
        for index in range(2)
    )
    reset = builder.call(aten.mul.Tensor, r, _part(builder, own, 2, width))
    n = builder.call(aten.tanh.default, builder.call(aten.add.Tensor, _part(builder, given, 2, width), reset))
    apart = builder.call(aten.sub.Tensor, h, n)
    return (builder.call(aten.add.Tensor, n, builder.call(aten.mul.Tensor, z, apart)),)


def _plain(activation: Target) -> Callable[..., State]:
    """h' = tanh(x + W h), or its ReLU."""

    def step(
        builder: GraphBuilder, given: fx.Node, state: State, weight: fx.Node, bias: None, projection: None
    ) -> State:
        (h,) = state
        total = builder.call(aten.add.Tensor, given, builder.call(aten.matmul.default, h, weight))
        return (builder.call(activation, total),)

    return step


def _part(builder: GraphBuilder, x: fx.Node, index: int, width: int) -> fx.Node:
    return builder.call(aten.slice.Tensor, x, -1, index * width, (index + 1) * width)


def _layers(
    builder: GraphBuilder,
    node: fx.Node,
    kind: _Kind,
    x: fx.Node,
    start: fx.Node | Sequence[fx.Node],
    parameters: Sequence[fx.Node],
    has_biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> State:
    """(all steps of the last layer, the last step of each layer, of an LSTM its c): as the op gives them."""
    starts = [start] if isinstance(start, fx.Node) else list(start)
    ways = 2 if bidirectional else 1
    size = len(parameters) // (layers * ways)
    if batch_first:
        x = builder.call(aten.transpose.int, x, 0, 1)
    if isinstance(shape(x)[0], BatchSize):
        raise UnsupportedError(
            f"{node.target} ({facts(node).source}) runs along the batch: "
            "its steps must be a fixed number, give it batch_first=True or transpose its input"
        )
    ends: list[State] = []
    for layer in range(layers):
        weights = [
            _weights(parameters[place : place + size], has_biases)
            for place in range(layer * ways * size, (layer + 1) * ways * size, size)
        ]
        first = [
            tuple(builder.call(aten.select.int, each, 0, layer * ways + way) for each in starts)
            for way in range(ways)
        ]
        x, last = _layer(builder, kind, x, weights, first)
        ends.extend(last)
    whole = builder.call(aten.transpose.int, x, 0, 1) if batch_first else x
    return (whole, *(builder.call(aten.stack.default, list(each), 0) for each in zip(*ends, strict=True)))


def _weights(parameters: Sequence[fx.Node], has_biases: bool) -> _Weights:
    of_input, of_state, *others = parameters
    biases = (others.pop(0), others.pop(0)) if has_biases else (None, None)
    return _Weights(of_input, of_state, *biases, *others)


def _layer(
    builder: GraphBuilder, kind: _Kind, x: fx.Node, weights: Sequence[_Weights], first: Sequence[State]
) -> tuple[fx.Node, list[State]]:
    """All steps of one layer, [steps, rows, ways x width], and the last state of each way."""
    given = [_of_input(builder, kind, x, each) for each in weights]
    if len(weights) == 2:
        given[1] = builder.call(aten.flip.default, given[1], [0])
    if len(weights) == 2 and kind.joint:
        joint = [
            builder.call(aten.stack.default, list(both), 0)
            for both in zip(*(_of_state(builder, kind, each) for each in weights), strict=True)
            if None not in both
        ]
        both = builder.call(aten.stack.default, given, 1)
        state = tuple(builder.call(aten.stack.default, list(each), 0) for each in zip(*first, strict=True))
        steps, last = _run(builder, kind, both, state, _named(kind, weights[0], joint))
        outputs = [builder.call(aten.select.int, steps, 1, way) for way in range(2)]
        ends = [tuple(builder.call(aten.select.int, each, 0, way) for each in last) for way in range(2)]
    else:
        runs = [
            _run(builder, kind, one, state, _named(kind, each, _of_state(builder, kind, each)))
            for one, state, each in zip(given, first, weights, strict=True)
        ]
        outputs, ends = [steps for steps, _ in runs], [last for _, last in runs]
    if len(weights) == 1:
        return outputs[0], ends
    outputs[1] = builder.call(aten.flip.default, outputs[1], [0])
    return builder.call(aten.cat.default, outputs, -1), ends


def _of_input(builder: GraphBuilder, kind: _Kind, x: fx.Node, weights: _Weights) -> fx.Node:
    bias = weights.input_bias
    if bias is not None and not kind.keeps_bias:
        bias = builder.call(aten.add.Tensor, bias, weights.state_bias)
    return builder.call(aten.linear.default, x, weights.of_input, bias)


def _of_state(builder: GraphBuilder, kind: _Kind, weights: _Weights) -> list[fx.Node | None]:
    """What a step needs: the turned weights, bias and projection; None for what there is not."""
    turned = builder.call(aten.transpose.int, weights.of_state, 0, 1)
    bias = projection = None
    if kind.keeps_bias and weights.state_bias is not None:
        bias = builder.reshape(weights.state_bias, [1, -1])
    if weights.projection is not None:
        projection = builder.call(aten.transpose.int, weights.projection, 0, 1)
    return [turned, bias, projection]


def _named(kind: _Kind, weights: _Weights, found: Sequence[fx.Node | None]) -> list[fx.Node | None]:
    """`found` without what is None, put back where a step looks for it."""
    present = iter([each for each in found if each is not None])
    has_bias = kind.keeps_bias and weights.state_bias is not None
    return [
        next(present),
        next(present) if has_bias else None,
        next(present) if weights.projection is not None else None,
    ]


def _run(
    builder: GraphBuilder, kind: _Kind, given: fx.Node, state: State, weights: Sequence[fx.Node | None]
) -> tuple[fx.Node, State]:
    """All h, stacked, and the last state."""
    steps = []
    (count,) = static_shape(given, [0])
    for index in range(count):
        state = kind.step(builder, builder.call(aten.select.int, given, 0, index), state, *weights)
        steps.append(state[0])
    return builder.call(aten.stack.default, steps, 0), state


def _cell(
    builder: GraphBuilder,
    kind: _Kind,
    x: fx.Node,
    state: fx.Node | Sequence[fx.Node],
    *parameters: fx.Node | None,
) -> State:
    weights = _Weights(*parameters)  # type: ignore[arg-type]  # the first two are never None
    given = _of_input(builder, kind, x, weights)
    first = (state,) if isinstance(state, fx.Node) else tuple(state)
    return kind.step(builder, given, first, *_of_state(builder, kind, weights))


LSTM = _Kind(_lstm_step, states=2)
GRU = _Kind(_gru_step, keeps_bias=True)
TANH = _Kind(_plain(aten.tanh.default))
RELU = _Kind(_plain(aten.relu.default), joint=False)

LAYERS: dict[Target, _Kind] = {
    aten.lstm.input: LSTM,
    aten.gru.input: GRU,
    aten.rnn_tanh.input: TANH,
    aten.rnn_relu.input: RELU,
}

CELLS: dict[Target, _Kind] = {
    aten.lstm_cell.default: LSTM,
    aten.gru_cell.default: GRU,
    aten.rnn_tanh_cell.default: TANH,
    aten.rnn_relu_cell.default: RELU,
}
