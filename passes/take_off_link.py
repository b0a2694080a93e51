"""The link from logits to probabilities at a network's end: found, and taken off."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass

from torch import fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, depends_on, placeholder
from sptrace.passes.canonicalize_splits import canonicalize_splits
from sptrace.passes.expressions import SIZES
from sptrace.passes.functionalize import functionalize
from sptrace.passes.link_ends import SIGMOIDS, SOFTMAXES, Ends
from sptrace.passes.remove_casts import CASTS
from sptrace.passes.remove_identities import COPIES, DROPOUTS

aten = ops.aten


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
    """Find the softmax or sigmoid that the network ends in, called or written out; None if it ends in something else.

    Between it and the output there may be what `sptrace.passes.link_ends` sees through. The graph gets the logits,
    which nobody reads yet.

    Raises:
        UnsupportedError: the network ends in a softmax over one class.
    """
    tail = [node for nodes in _tail(module) for node in nodes]
    if any(str(node.target).partition(".")[2].partition(".")[0].endswith("_") for node in tail):
        functionalize(module)  # what works in place may change what others read
    if any(node.target == operator.getitem for node in tail):
        canonicalize_splits(module)
    builder, given = GraphBuilder(module), answer(module)
    with module.graph.inserting_before(module.graph.output_node()), builder.origin(given, adjoint=False):
        end = Ends(builder).of(given)
    if end is None or end.dim not in (None, 1):
        return None
    if end.dim is None:
        return Tail("sigmoid", "logsigmoid" if end.is_log else "sigmoid", end.logits)
    return Tail("softmax", "log_softmax" if end.is_log else "softmax", end.logits)


def take_off_link(module: fx.GraphModule, tail: Tail) -> None:
    """Let the graph give the logits in place of what the network's link makes of them.

    Before:  y = softmax(z, 1); return flatten(y, 1)
    After:   return flatten(z, 1)
    """
    output = module.graph.output_node()
    given = output.args[0]
    unread = {answer(module)}
    output.args = ((tail.logits, *given[1:]) if isinstance(given, tuple) else tail.logits,)
    while unread:  # a dropout would be kept for its random numbers
        node = unread.pop()
        for user in list(node.users):
            if user.target == aten._assert_tensor_metadata.default:
                module.graph.erase_node(user)
        if node.op == "call_function" and not node.users:
            unread.update(node.all_input_nodes)
            module.graph.erase_node(node)
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


def made_of(module: fx.GraphModule) -> list[fx.Node]:
    """The softmaxes and sigmoids of which the output is computed by arithmetic and means, with no layer in between.

    Empty if there is anything else that it is computed of.
    """
    _, ends, others = _tail(module)
    return [] if others else ends


def is_squeezed(module: fx.GraphModule) -> bool:
    """Is the output computed by arithmetic of functions that bound numbers, softmaxes and sigmoids among them?"""
    _, _, others = _tail(module, BOUNDED)
    return not others


def _tail(
    module: fx.GraphModule, functions: Collection[str] = ()
) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """From the output back: the arithmetic, then softmaxes, sigmoids and `functions`, then what else it is made of."""
    dependent = depends_on(module.graph, placeholder(module.graph, "image"))
    waiting = [answer(module)]
    seen = set(waiting)
    arithmetic, ends, others = [], [], []
    while waiting:
        node = waiting.pop()
        named = str(getattr(node.target, "__name__", node.target)).partition(".")[0].rstrip("_")
        if node.target in SOFTMAXES | SIGMOIDS or named in functions:
            ends.append(node)
            continue
        if node.target not in SIZES | COPIES | DROPOUTS | CASTS and named not in ARITHMETIC:
            others.append(node)
            continue
        arithmetic.append(node)
        read = {source for source in node.all_input_nodes if source in dependent} - seen
        seen |= read
        waiting += read
    return arithmetic, ends, others
