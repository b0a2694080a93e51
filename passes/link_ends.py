"""Softmaxes and sigmoids at a network's end, called or written out: e^z / sum e^z, z - logsumexp z, 1 - s(z) ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, ops

from sptrace.compiler.graph.builder import GraphBuilder, parameter, permutation, shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.errors import UnsupportedError
from sptrace.passes.expressions import (
    NEGLIGIBLE,
    SAME,
    SIZES,
    affine,
    bounds,
    dim_of,
    exponent,
    is_one,
    logarithm_of_sum,
    one_less,
    reduction,
    same,
    without_largest,
)
from sptrace.passes.remove_casts import CASTS
from sptrace.passes.remove_identities import DROPOUTS

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

PARTS = {aten.select.int, aten.slice.Tensor}
ORDERS = {aten.flip.default, aten.roll.default}
PRECISE = {torch.float32, torch.float64}
"""Between these nothing is lost that a link shows."""

PERCENT = 100


class End(NamedTuple):
    """What a node is.

    Arguments:
        logits: what the link is applied to, in the node's shape.
        dim: that a softmax is over, from 0; None of a sigmoid.
        is_log: is it the link's logarithm?
    """

    logits: fx.Node
    dim: int | None
    is_log: bool


class Ends:
    """Finds out which nodes are a softmax or sigmoid of something, and of what.

    Logits in another arrangement are new nodes, put where the builder's graph inserts.

    Arguments:
        builder: of the captured network's graph, functional where it ends.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder

    def of(self, node: Any) -> End | None:
        """What a node is; None if it is neither.

        | written | is |
        |---|---|
        | e^z / sum(e^z), with z - max(z) in place of z or without | softmax(z) |
        | z - logsumexp(z), z - log(sum(e^z)) | log_softmax(z) |
        | 1 / (1 + e^-z), e^z / (1 + e^z), (1 + tanh(z / 2)) / 2 | sigmoid(z) |
        | -softplus(-z) | logsigmoid(z) |
        | 1 - sigmoid(z) | sigmoid(-z) |
        | log, exp, copies, rearrangements, another order of classes, percents of these | of the same logits |
        | cat and stack of sigmoids | sigmoid(cat(logits)) |
        | one of two classes of a softmax | sigmoid(their logits' difference) |

        Raises:
            UnsupportedError: it is a softmax over one class.
        """
        called: Any = node.target if isinstance(node, fx.Node) and node.op == "call_function" else None
        if called in SOFTMAXES | SIGMOIDS:
            return self._called(node)
        if called in _READ:
            return _READ[called](self, node)
        return self._rearranged(node) if called is not None and _rearranges(node) else None

    def _called(self, node: Any) -> End | None:
        logits = _single(node.args[0])
        if node.target in SIGMOIDS:
            return End(logits, None, SIGMOIDS[node.target])
        dim: int = node.args[1]
        return self._softmax(logits, dim % value(node).ndim, SOFTMAXES[node.target])

    def _softmax(self, logits: fx.Node, dim: int, is_log: bool) -> End:
        """Of logits as they are before their largest, or the logarithm of their sum, is taken from all of them."""
        if shape(logits)[dim] == 1:
            where = facts(logits).source
            raise UnsupportedError(
                f"the network ends in a softmax over one class ({where}), which is 1 for every picture: "
                "let it end in a sigmoid, or in the logit"
            )
        while True:
            inner = without_largest(logits, dim) or self._without_logarithm(logits, dim)
            if inner is None:
                return End(logits, dim, is_log)
            logits = inner

    def _without_logarithm(self, logits: fx.Node, dim: int) -> fx.Node | None:
        end = self.of(logits)
        return end.logits if end is not None and end.dim == dim and end.is_log else None

    # --- Logarithms, quotients, differences ---

    def _logarithm(self, node: fx.Node) -> End | None:
        end = self.of(node.args[0])
        return None if end is None or end.is_log else end._replace(is_log=True)

    def _exponential(self, node: fx.Node) -> End | None:
        end = self.of(node.args[0])
        return end._replace(is_log=False) if end is not None and end.is_log else None

    def _quotient(self, node: fx.Node) -> End | None:
        above, below = node.args[:2]
        return self._share(above, below) or (self._one_by(below) if is_one(above) else self._scaled(node))

    def _product(self, node: fx.Node) -> End | None:
        for above, inverse in (node.args[:2], node.args[1::-1]):
            x, factor, offset = affine(inverse) if isinstance(inverse, fx.Node) else (None, 0.0, 0.0)
            if x is not None and x.target == aten.reciprocal.default and (factor, offset) == (1, 0):
                found = self._share(above, x.args[0])
                if found is not None:
                    return found
        return self._scaled(node)

    def _share(self, above: Any, below: Any) -> End | None:
        """e^u / sum(e^u) is softmax(u), and e^u / (1 + e^u) sigmoid(u)."""
        u = exponent(above)
        if u is None or not isinstance(below, fx.Node):
            return None
        dim = dim_of(reduction(below), "sum", above)
        if dim is not None:
            return self._softmax(u, dim, is_log=False)
        v = exponent(one_less(below))
        return End(u, None, is_log=False) if v is not None and same(u, v) else None

    def _inverse(self, node: fx.Node) -> End | None:
        is_power = node.target == aten.pow.Tensor_Scalar
        return None if is_power and node.args[1] != -1 else self._one_by(node.args[0])

    def _one_by(self, below: Any) -> End | None:
        """1 / (1 + e^v) is sigmoid(-v)."""
        v = exponent(one_less(below))
        return None if v is None else End(self._times(v, -1.0), None, is_log=False)

    def _difference(self, node: fx.Node) -> End | None:
        z, subtracted = node.args[:2]
        if isinstance(z, fx.Node) and isinstance(subtracted, fx.Node) and node.kwargs.get("alpha", 1) == 1:
            dim = logarithm_of_sum(subtracted, z)
            if dim is not None:
                return self._softmax(z, dim, is_log=True)
        return self._scaled(node)

    def _scaled(self, node: fx.Node) -> End | None:
        """What is a multiple of an end, or of a tanh or softplus, and a number more."""
        x, factor, offset = affine(node)
        if x is node:
            return None
        if x.target == aten.tanh.default and offset == 0.5 and abs(factor) == 0.5:
            return End(self._times(x.args[0], 4 * factor), None, is_log=False)
        if x.target == aten.softplus.default and (factor, offset) == (-1, 0):
            beta = [*x.args[1:], 1][0]
            return End(self._times(x.args[0], -1.0), None, is_log=True) if beta == 1 else None
        end = self.of(x)
        if end is None:
            return None
        if end.is_log:
            return end if (factor, offset) == (1, 0) else None
        if end.dim is None and (factor, offset) == (-1, 1):
            return end._replace(logits=self._times(end.logits, -1.0))
        return end if factor in (1, PERCENT) and abs(offset) <= NEGLIGIBLE * factor else None

    def _times(self, x: Any, factor: float) -> fx.Node:
        if factor == 1:
            assert isinstance(x, fx.Node)
            return x
        if factor == -1:
            return self._builder.call(aten.neg.default, x)
        return self._builder.call(aten.mul.Tensor, x, factor)

    def _bounded(self, node: fx.Node) -> End | None:
        """Probabilities that are kept away from 0 and 1 by next to nothing."""
        low, high = bounds(node)
        end = self.of(node.args[0])
        inside = low <= NEGLIGIBLE and high >= 1 - NEGLIGIBLE
        return end if end is not None and not end.is_log and inside else None

    # --- Rearrangements ---

    def _rearranged(self, node: fx.Node) -> End | None:
        end = self.of(node.args[0])
        if end is None or (node.target in CASTS and value(end.logits).dtype == value(node).dtype):
            return end
        if end.dim is not None and node.target in PARTS and _dim(node) == end.dim:
            other = _other_of_two(node)
            if other is None:
                return None
            this, that = (
                self._builder.call(node.target, end.logits, *args) for args in (node.args[1:], other)
            )
            return End(self._builder.call(aten.sub.Tensor, this, that), None, end.is_log)
        dim = None if end.dim is None else _moved(node, end.dim)
        if dim is None and end.dim is not None:
            return None
        return End(self._again(node, end.logits), dim, end.is_log)

    def _again(self, node: Any, logits: Any) -> fx.Node:
        return self._builder.call(node.target, logits, *node.args[1:], **node.kwargs)

    def _picked(self, node: fx.Node) -> End | None:
        """By indices that are alike for all pictures: of a softmax each class once, in any order."""
        source: Any = node.args[0]
        end = self.of(source)
        dim, indices = _indices(self._builder.module, node)
        if end is None or dim is None or indices is None:
            return None
        if end.dim == dim:
            classes = value(source).shape[dim]
            if sorted((indices % classes).tolist()) != list(range(classes)):
                return None
        elif end.dim is not None and node.target == aten.index.Tensor and indices.ndim != 1:
            return None
        return End(self._again(node, end.logits), end.dim, end.is_log)

    def _joined(self, node: fx.Node) -> End | None:
        """Several sigmoids side by side are the sigmoid of their logits side by side."""
        parts = node.args[0]
        assert isinstance(parts, Sequence)
        ends = [end for end in map(self.of, parts) if end is not None and end.dim is None]
        if len(ends) != len(parts) or len({end.is_log for end in ends}) != 1:
            return None
        return End(self._again(node, [end.logits for end in ends]), None, ends[0].is_log)


_READ: dict[Target, Callable[[Ends, fx.Node], End | None]] = {
    aten.log.default: Ends._logarithm,
    aten.exp.default: Ends._exponential,
    aten.div.Tensor: Ends._quotient,
    aten.true_divide.Tensor: Ends._quotient,
    aten.mul.Tensor: Ends._product,
    aten.reciprocal.default: Ends._inverse,
    aten.pow.Tensor_Scalar: Ends._inverse,
    aten.sub.Tensor: Ends._difference,
    aten.rsub.Scalar: Ends._scaled,
    aten.add.Tensor: Ends._scaled,
    aten.neg.default: Ends._scaled,
    aten.clamp.default: Ends._bounded,
    aten.clamp_min.default: Ends._bounded,
    aten.clamp_max.default: Ends._bounded,
    aten.index.Tensor: Ends._picked,
    aten.index_select.default: Ends._picked,
    aten.cat.default: Ends._joined,
    aten.concat.default: Ends._joined,
    aten.stack.default: Ends._joined,
}


# --- How a rearrangement moves the dimension of a softmax ---


def _rearranges(node: Any) -> bool:
    if node.target in DROPOUTS:
        return not node.args[2]
    if node.target in CASTS:
        return {value(node).dtype, value(node.args[0]).dtype} <= PRECISE
    return node.target in SAME | SIZES | PARTS | ORDERS or permutation(node) is not None


def _single(node: Any) -> fx.Node:
    """What the node is in float32, if it is that in float64."""
    while (
        node.target in CASTS and value(node).dtype == torch.float64 and value(node.args[0]).dtype in PRECISE
    ):
        node = node.args[0]
    assert isinstance(node, fx.Node)
    return node


def _dim(node: Any) -> int:
    """Of a select or slice."""
    return int(node.args[1] % value(node.args[0]).ndim)


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
        return dim - int(_dim(node) < dim)
    if node.target in SIZES:
        before, after = ([at for at, size in enumerate(shape(one)) if size != 1] for one in (source, node))
        alike = [shape(source)[at] for at in before] == [shape(node)[at] for at in after]
        return after[before.index(dim)] if alike else None
    return dim


def _indices(module: fx.GraphModule, node: Any) -> tuple[int | None, Tensor | None]:
    """The dimension that an index or index_select picks from, and its numbers if these are constants."""
    if node.target == aten.index_select.default:
        dim, indices = node.args[1] % value(node.args[0]).ndim, node.args[2]
    else:
        given = [at for at, one in enumerate(node.args[1]) if one is not None]
        if len(given) != 1:
            return None, None
        dim, indices = given[0], node.args[1][given[0]]
    while indices.target in SAME:
        indices = indices.args[0]
    data = parameter(module, indices) if indices.op == "get_attr" else None
    return dim, data if data is not None and data.dtype in (torch.int32, torch.int64) else None
