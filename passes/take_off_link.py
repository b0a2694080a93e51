"""The link from logits to probabilities at a network's end: found, and taken off."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import fx, ops

from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder, Target, depends_on, permutation, placeholder, shape, value
from sptrace.passes.functionalize import functionalize
from sptrace.passes.remove_casts import CASTS
from sptrace.passes.remove_identities import COPIES, DROPOUTS

aten = ops.aten

SOFTMAXES: dict[Target, bool] = {
    aten.softmax.int: False,
    aten._softmax.default: False,
    aten.special_softmax.default: False,
    aten.log_softmax.int: True,
    aten._log_softmax.default: True,
    aten.special_log_softmax.default: True,
}
"""Does it give logarithms?"""

SIGMOIDS: dict[Target, bool] = {
    aten.sigmoid.default: False,
    aten.special_expit.default: False,
    aten.log_sigmoid.default: True,
}

LOGARITHMS: dict[Target, bool] = {aten.log.default: True, aten.exp.default: False}
"""Is it the logarithm, or undoes it one?"""

SIZES = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
}
PARTS = {aten.select.int, aten.slice.Tensor}


@dataclass(frozen=True)
class Tail:
    """The link that a network ends in.

    Arguments:
        link: "softmax" or "sigmoid", from logits to probabilities.
        name: what the network calls: "softmax", "log_softmax", "sigmoid" or "logsigmoid". Of a softmax over two
            classes of which one is read it is the sigmoid of their difference.
        logits: what the link is applied to, in the shape of the network's output; new in the graph.
    """

    link: str
    name: str
    logits: fx.Node


def answer(module: fx.GraphModule) -> fx.Node:
    """What a captured network gives, beside a layer if there is one."""
    given = module.graph.output_node().args[0]
    outputs = given[0] if isinstance(given, tuple) else given
    assert isinstance(outputs, fx.Node)
    return outputs


def find_link(module: fx.GraphModule) -> Tail | None:
    """Find the softmax or sigmoid that the network ends in; None if it ends in something else.

    Between it and the output there may be copies, rearrangements, and parts that leave out no class; exp(log_softmax)
    is a softmax, log(softmax) a log_softmax. The graph gets the logits, which nobody reads yet.
    """
    chain = _chain(module)
    if any(str(node.target).partition(".")[2].partition(".")[0].endswith("_") for node in chain):
        functionalize(module)  # what works in place may change what others read
        chain = _chain(module)
    if not chain or chain[0].target not in SOFTMAXES | SIGMOIDS:
        return None
    output = module.graph.output_node()
    builder = GraphBuilder(module)
    with module.graph.inserting_before(output), builder.origin(chain[0], adjoint=False):
        return _without(builder, chain)


def take_off_link(module: fx.GraphModule, tail: Tail) -> None:
    """Let the graph give the logits in place of what the network's link makes of them.

    Before:  y = softmax(z, 1); return flatten(y, 1)
    After:   return flatten(z, 1)
    """
    output = module.graph.output_node()
    given = output.args[0]
    before = answer(module)
    output.args = ((tail.logits, *given[1:]) if isinstance(given, tuple) else tail.logits,)
    while before.op == "call_function" and not before.users:  # a dropout would be kept for its random numbers
        read = before.args[0]
        module.graph.erase_node(before)
        assert isinstance(read, fx.Node)
        before = read
    module.graph.eliminate_dead_code()
    module.recompile()


ARITHMETIC = {
    "add", "sub", "rsub", "mul", "div", "neg", "exp", "log", "pow", "sqrt", "clamp", "clamp_min", "clamp_max",
    "maximum", "minimum", "where", "masked_fill", "mean", "sum", "amax", "amin", "logsumexp", "cat", "concat", "stack",
    "nan_to_num", "reciprocal", "square", "multiply", "divide", "true_divide", "subtract", "lerp", "flip", "roll",
    "select", "slice", "index", "index_select", "gather", "unbind", "split", "chunk",
    "getitem", "permute", "transpose", "expand",
}  # fmt: skip
"""Ops by name after which numbers made of probabilities are still that."""


BOUNDED = {
    "hardsigmoid",
    "hardtanh",
    "clamp",
    "clip",
    "tanh",
    "erf",
    "exp",
    "reciprocal",
    "relu6",
    "softsign",
}
"""Functions that, with arithmetic around them, squeeze numbers into [0, 1]: probabilities that are no sigmoids."""


def is_made_of_probabilities(module: fx.GraphModule) -> bool:
    """Is the output computed of softmaxes and sigmoids alone, by arithmetic and means, with no layer in between?"""
    return _is_made_of(module, set())


def is_squeezed(module: fx.GraphModule) -> bool:
    """Is the output computed by arithmetic of functions that bound numbers, like `is_made_of_probabilities`?"""
    return _is_made_of(module, BOUNDED)


def _is_made_of(module: fx.GraphModule, functions: Collection[str]) -> bool:
    dependent = depends_on(module.graph, placeholder(module.graph, "image"))
    waiting = [answer(module)]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        named = str(getattr(node.target, "__name__", node.target)).partition(".")[0].rstrip("_")
        if node.target in SOFTMAXES | SIGMOIDS or named in functions:
            continue
        if node.target not in SIZES | COPIES | DROPOUTS | CASTS and named not in ARITHMETIC:
            return False
        read = {source for source in node.all_input_nodes if source in dependent} - seen
        seen |= read
        waiting += read
    return True


def _chain(module: fx.GraphModule) -> list[Any]:
    """From the link to the output, each reading the one before; begins with whatever is no rearrangement."""
    node: Any = answer(module)
    chain = [node]
    while _rearranges(node) or node.target in LOGARITHMS:
        assert isinstance(node.args[0], fx.Node)
        node = node.args[0]
        chain.insert(0, node)
    return chain


def _rearranges(node: Any) -> bool:
    if node.target in DROPOUTS:
        return not node.args[2]
    if node.target in CASTS:
        return value(node).dtype == value(node.args[0]).dtype
    return node.target in COPIES | SIZES | PARTS or permutation(node) is not None


def _without(builder: GraphBuilder, chain: list[Any]) -> Tail | None:
    """The chain once more without its link; None where that would not come to the same."""
    link, *rest = chain
    logits = link.args[0]
    assert isinstance(logits, fx.Node)
    if value(link).dtype != value(logits).dtype:
        return None
    is_log = (SOFTMAXES | SIGMOIDS)[link.target]
    classes = None if link.target in SIGMOIDS else _classes(link)
    for node in rest:
        takes_log = LOGARITHMS.get(node.target)
        if takes_log is not None:
            if takes_log == is_log:
                return None
            is_log = takes_log
        elif classes is None:
            logits = builder.call(node.target, logits, *node.args[1:], **node.kwargs)
        elif _reads(node, classes):
            other = _other_of_two(node)
            if other is None:
                return None
            this, that = (builder.call(node.target, logits, *args) for args in (node.args[1:], other))
            logits, classes = builder.call(aten.sub.Tensor, this, that), None
        else:
            logits = builder.call(node.target, logits, *node.args[1:], **node.kwargs)
            classes = _moved(node, classes)
            if classes is None:
                return None
    if classes is None:
        return Tail("sigmoid", "logsigmoid" if is_log else "sigmoid", logits)
    return Tail("softmax", "log_softmax" if is_log else "softmax", logits) if classes == 1 else None


def _classes(softmax: fx.Node) -> int:
    """The dimension that a softmax is over."""
    dim = softmax.args[1]
    assert isinstance(dim, int)
    if shape(softmax)[dim] == 1:
        where = softmax.meta.get("source", "source unknown")
        raise UnsupportedError(
            f"the network ends in a softmax over one class ({where}), which is 1 for every picture: "
            "let it end in a sigmoid, or in the logit"
        )
    return dim % value(softmax).ndim


def _reads(node: Any, dim: int) -> bool:
    """Does it take a part of that dimension?"""
    return node.target in PARTS and bool(node.args[1] % value(node.args[0]).ndim == dim)


def _other_of_two(node: Any) -> tuple[int, ...] | None:
    """The arguments that take the other one, if it takes one of two classes: s = sigmoid(z_0 - z_1) is p_0."""
    dim, *taken = node.args[1:]
    size = shape(node.args[0])[dim]
    if size != 2 or (node.target == aten.slice.Tensor and shape(node)[dim] != 1):
        return None
    start = (taken[0] or 0) % 2
    return (dim, 1 - start) if node.target == aten.select.int else (dim, 1 - start, 2 - start)


def _moved(node: Any, dim: int) -> int | None:
    """Which dimension of the result it is; None if it is mixed with others."""
    source: fx.Node = node.args[0]
    order = permutation(node)
    if order is not None:
        return order.index(dim)
    if node.target == aten.select.int:
        return dim - int(node.args[1] % value(source).ndim < dim)
    if node.target in SIZES:
        before, after = ([at for at, size in enumerate(shape(one)) if size != 1] for one in (source, node))
        same = [shape(source)[at] for at in before] == [shape(node)[at] for at in after]
        return after[before.index(dim)] if same else None
    return dim
