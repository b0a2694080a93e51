"""Rows, columns and channels of one tensor, followed through a graph to the tensors computed from it.

A coordinate (a tensor's row, say) is followed for as long as it is a function of a single dimension: it is then a pair
of that dimension and one number for every index along it. Numbers begin at 1; 0 stands where something else came in,
such as padding and class tokens. Rows and columns flattened to tokens are two functions of one dimension. What depends
on two dimensions, as a row does after a map was cut into windows, is not followed any further.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import value
from sptrace.compiler.graph.facts import facts

aten = torch.ops.aten

Coordinate = tuple[int, Tensor]
State = dict[int | str, Coordinate]
"""What is known of a tensor's dimensions: name of the coordinate -> (dimension, float32 [its size])."""

CONVOLUTIONS = {
    *("conv1d", "conv2d", "conv3d", "convolution"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
CHANNEL_NORMS = {
    *("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm"),
    *("group_norm", "native_group_norm"),
}
LAST_NORMS = {"layer_norm", "native_layer_norm", "rms_norm"}
PRODUCTS = {"matmul", "mm", "bmm"}
ATTENTION = {"scaled_dot_product_attention"}

# Run on coordinates themselves, these show where they went: views, and reductions of what is constant.
_MOVES = {
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "unfold",
        "pixel_shuffle",
    ),
    *("permute", "transpose", "swapaxes", "swapdims", "t", "mT", "numpy_T", "movedim", "moveaxis"),
    *("select", "slice", "narrow", "split", "split_with_sizes", "chunk", "unbind", "constant_pad_nd", "pad"),
    *("roll", "flip", "contiguous", "clone", "alias", "detach", "mean", "sum", "amax", "amin"),
}
# Beside the pointwise ops: each number of the result belongs to the place of one number of the input.
_IN_PLACE_OF_EACH = {
    *("hardswish", "hardswish_", "prelu", "dropout", "dropout_", "feature_dropout", "cumsum"),
    *("softmax", "_softmax", "log_softmax", "_log_softmax"),
    *("to", "_to_copy", "type_as", "expand", "expand_as", "lift_fresh_copy"),
}
# They move what stands along the last dimensions closer together or further apart, and leave the others.
_RESAMPLING = ("_pool1d", "_pool2d", "_pool3d", "upsample_")


def op(node: fx.Node) -> str:
    """The name of the op that a node calls, without its overload; empty if it calls none of ATen's."""
    called = node.target
    return called._schema.name.removeprefix("aten::") if isinstance(called, torch._ops.OpOverload) else ""


def follow(
    graph: fx.Graph, starts: Mapping[fx.Node, State], stop: Callable[[fx.Node], bool] = lambda node: False
) -> dict[fx.Node, Any]:
    """The state of every node that a coordinate reaches; of nodes that give several tensors a list of states.

    Arguments:
        graph: as `capture.from_torch` gives it.
        starts: what is known of some nodes.
        stop: nodes that no coordinate is followed through.
    """
    states: dict[fx.Node, Any] = dict(starts)
    for node in graph.nodes:
        if node in states or node.op != "call_function" or stop(node):
            continue
        if any(states.get(argument) for argument in node.all_input_nodes):
            states[node] = _through(node, states)
    return states


def every(node: fx.Node) -> State:
    """The state of a tensor each of whose dimensions, but the batch, is followed under its own number."""
    return {dim: (dim, numbered(size)) for dim, size in enumerate(value(node).shape) if dim > 0}


def numbered(size: int) -> Tensor:
    """1, 2, ... size."""
    return torch.arange(1, size + 1, dtype=torch.float32)


def _through(node: fx.Node, states: Mapping[fx.Node, Any]) -> Any:
    """What is known of a node from what is known of its arguments."""
    name, first = op(node), node.args[0] if node.args else None
    if node.target is operator.getitem:
        given: Any = states[node.all_input_nodes[0]]
        index: Any = node.args[1]
        return given[index] if isinstance(given, list) else given  # of a norm or a maximum: index 0
    if name in ("cat", "concat", "concatenate", "stack"):
        return _joined(node, states)
    known = {argument: states[argument] for argument in node.all_input_nodes if argument in states}
    sizes = _sizes(node)
    if any(isinstance(state, list) for state in known.values()) or not isinstance(first, fx.Node):
        return {}
    of_first: State = known.get(first, {})
    if name in _MOVES:
        return _moved(node, of_first)
    if name in CONVOLUTIONS:
        return _resampled(of_first, sizes, lost=1)
    if any(part in name for part in _RESAMPLING):
        return _resampled(of_first, sizes)
    if name == "linear" or name in ATTENTION:
        return _aligned(of_first, first, sizes, lost=-1)
    if name in PRODUCTS:
        operands: Any = zip(node.args[:2], (-1, -2), strict=True)
        return _agreed(_aligned(known.get(item, {}), item, sizes, lost) for item, lost in operands)
    if name in CHANNEL_NORMS | LAST_NORMS:
        return _aligned(of_first, first, sizes)
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise in tags or name in _IN_PLACE_OF_EACH:
        return _agreed(_aligned(state, argument, sizes) for argument, state in known.items())
    return {}


def _aligned(state: State, argument: fx.Node, sizes: list[int], lost: int | None = None) -> State:
    """What an argument tells of a result that it broadcasts to; `lost` is the one dimension that is summed over."""
    own = _sizes(argument)
    shift = len(sizes) - len(own)
    return {
        key: (dim + shift, numbers)
        for key, (dim, numbers) in state.items()
        if dim + shift >= 0 and sizes[dim + shift] == own[dim] and (lost is None or dim != len(own) + lost)
    }


def _agreed(states: Iterable[State]) -> State:
    """The union of what several arguments tell; a coordinate on which they contradict each other is given up."""
    found: State = {}
    doubted = set()
    for state in states:
        for key, (dim, numbers) in state.items():
            if found.setdefault(key, (dim, numbers))[0] != dim:
                doubted.add(key)
    return {key: coordinate for key, coordinate in found.items() if key not in doubted}


def _resampled(state: State, sizes: list[int], lost: int | None = None) -> State:
    """Coordinates after a convolution or a pool: counted anew where there are more or fewer places than before.

    Tokens are not: what a window over several of them holds is neither one row nor one column.
    """
    dims = [dim for dim, _ in state.values()]
    return {
        key: (dim, numbers if len(numbers) == sizes[dim] else numbered(sizes[dim]))
        for key, (dim, numbers) in state.items()
        if dim != lost and (len(numbers) == sizes[dim] or dims.count(dim) == 1)
    }


def _joined(node: fx.Node, states: Mapping[fx.Node, Any]) -> State:
    """Coordinates after cat, or after stack, which first gives every tensor a new dimension."""
    parts: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    axis %= len(_sizes(node))
    known: list[State] = [state if isinstance(state := states.get(part, {}), dict) else {} for part in parts]
    if op(node) == "stack":
        known = [{key: (dim + (dim >= axis), line) for key, (dim, line) in one.items()} for one in known]
        return _agreed(known)
    along: State = {}
    for key in {key for one in known for key, (dim, _) in one.items() if dim == axis}:
        lines = [
            one[key][1] if key in one and one[key][0] == axis else torch.zeros(_sizes(part)[axis])
            for one, part in zip(known, parts, strict=True)
        ]
        along[key] = (axis, torch.cat(lines))
    beside = [{key: held for key, held in one.items() if held[0] != axis} for one in known]
    return _agreed([along, *beside])


def _moved(node: fx.Node, state: State) -> Any:
    """Coordinates after an op that only moves numbers about: it is run on them."""
    args, kwargs = fx.node.map_arg((node.args[1:], node.kwargs), lambda item: facts(item).first)
    sizes = _sizes(node.args[0])
    results: Any = None
    for key, (dim, line) in state.items():
        along = [-1 if index == dim else 1 for index in range(len(sizes))]
        moved: Any = node.target(line.reshape(along).expand(sizes).contiguous(), *args, **kwargs)  # type: ignore[operator]
        parts = [moved] if isinstance(moved, Tensor) else moved
        results = results or [State() for _ in parts]
        for found, part in zip(results, parts, strict=True):
            found |= _varying(key, part)
    if results is None or isinstance(moved, Tensor):
        return results[0] if results else {}
    return results


def _varying(key: int | str, moved: Tensor) -> State:
    """The coordinate, if it varies along one dimension alone."""
    dims = [dim for dim in range(moved.ndim) if bool((moved != moved.narrow(dim, 0, 1)).any())]
    if len(dims) != 1:
        return {}
    return {key: (dims[0], moved.movedim(dims[0], 0).reshape(moved.shape[dims[0]], -1)[:, 0].clone())}


def _sizes(node: Any) -> list[int]:
    """Sizes of what a node gives for the first batch: of several the first's; none if that is no tensor."""
    first = facts(node).first
    first = first[0] if isinstance(first, tuple | list) and first else first
    return list(first.shape) if isinstance(first, Tensor) else []
