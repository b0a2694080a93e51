"""Softmaxes and sigmoids at a network's end, called or written out: e^z / sum e^z, z - logsumexp z, 1 - s(z) ..."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, ops

from sptrace.errors import UnsupportedError
from sptrace.graph import GraphBuilder, Target, parameter, permutation, shape, value
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
ORDERS = {aten.flip.default, aten.roll.default}
SAME = COPIES | {aten.detach.default}
EXPANSIONS = {aten.expand.default, aten.expand_as.default}

PRECISE = {torch.float32, torch.float64}
"""Between these nothing is lost that a link shows."""

NEGLIGIBLE = 1e-6
"""What networks add to probabilities, or keep them away from 0 and 1 by, lest a logarithm be infinite."""

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


class Affine(NamedTuple):
    """factor * x + offset, with numbers that are alike everywhere."""

    x: fx.Node
    factor: float = 1.0
    offset: float = 0.0


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
            where = logits.meta.get("source", "source unknown")
            raise UnsupportedError(
                f"the network ends in a softmax over one class ({where}), which is 1 for every picture: "
                "let it end in a sigmoid, or in the logit"
            )
        while True:
            inner = _without_largest(logits, dim) or self._without_logarithm(logits, dim)
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
        return self._share(above, below) or (self._one_by(below) if _is_one(above) else self._scaled(node))

    def _product(self, node: fx.Node) -> End | None:
        for above, inverse in (node.args[:2], node.args[1::-1]):
            x, factor, offset = _affine(inverse) if isinstance(inverse, fx.Node) else (None, 0.0, 0.0)
            if x is not None and x.target == aten.reciprocal.default and (factor, offset) == (1, 0):
                found = self._share(above, x.args[0])
                if found is not None:
                    return found
        return self._scaled(node)

    def _share(self, above: Any, below: Any) -> End | None:
        """e^u / sum(e^u) is softmax(u), and e^u / (1 + e^u) sigmoid(u)."""
        u = _exponent(above)
        if u is None or not isinstance(below, fx.Node):
            return None
        dim = _dim_of(_reduction(below), "sum", above)
        if dim is not None:
            return self._softmax(u, dim, is_log=False)
        v = _exponent(_one_less(below))
        return End(u, None, is_log=False) if v is not None and _same(u, v) else None

    def _inverse(self, node: fx.Node) -> End | None:
        is_power = node.target == aten.pow.Tensor_Scalar
        return None if is_power and node.args[1] != -1 else self._one_by(node.args[0])

    def _one_by(self, below: Any) -> End | None:
        """1 / (1 + e^v) is sigmoid(-v)."""
        v = _exponent(_one_less(below))
        return None if v is None else End(self._times(v, -1.0), None, is_log=False)

    def _difference(self, node: fx.Node) -> End | None:
        z, subtracted = node.args[:2]
        if isinstance(z, fx.Node) and isinstance(subtracted, fx.Node) and node.kwargs.get("alpha", 1) == 1:
            dim = _logarithm_of_sum(subtracted, z)
            if dim is not None:
                return self._softmax(z, dim, is_log=True)
        return self._scaled(node)

    def _scaled(self, node: fx.Node) -> End | None:
        """What is a multiple of an end, or of a tanh or softplus, and a number more."""
        x, factor, offset = _affine(node)
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
        low, high = _bounds(node)
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


# --- What nodes are made of ---


def _exponent(node: Any) -> fx.Node | None:
    """u, if the node is e^u."""
    exponent = node.args[0] if isinstance(node, fx.Node) and node.target == aten.exp.default else None
    return exponent if isinstance(exponent, fx.Node) else None


def _is_one(given: Any) -> bool:
    return given == 1 or (isinstance(given, fx.Node) and given.target == aten.ones_like.default)


def _one_less(node: Any) -> fx.Node | None:
    """x, if the node is 1 + x."""
    if not isinstance(node, fx.Node) or node.target != aten.add.Tensor:
        return None
    found = [x for x, one in (node.args[:2], node.args[1::-1]) if _is_one(one) and isinstance(x, fx.Node)]
    return found[0] if found and node.kwargs.get("alpha", 1) == 1 else None


def _affine(node: fx.Node) -> Affine:
    """The node as a multiple of another and a number more, through as many steps as there are."""
    found = Affine(node)
    while (step := _step(found.x)) is not None:
        found = Affine(step.x, found.factor * step.factor, found.factor * step.offset + found.offset)
    return found


def _step(node: Any) -> Affine | None:
    """The one op that the node is as a multiple and a number more; None if it is something else."""
    x, number = [*node.args, 0.0, 0.0][:2]
    if node.target == aten.sub.Tensor and _is_one(x):
        x, number = node.args[1], 1.0
    alpha = node.kwargs.get("alpha", 1)
    if not isinstance(x, fx.Node) or not isinstance(number, int | float) or alpha != 1:
        return None
    if node.target == aten.neg.default:
        return Affine(x, -1.0)
    if node.target == aten.mul.Tensor:
        return Affine(x, float(number))
    if node.target in (aten.div.Tensor, aten.true_divide.Tensor) and number != 0:
        return Affine(x, 1 / number)
    if node.target == aten.add.Tensor:
        return Affine(x, 1.0, float(number))
    if node.target == aten.rsub.Scalar or (node.target == aten.sub.Tensor and x is node.args[1]):
        return Affine(x, -1.0, float(number))
    return Affine(x, 1.0, -float(number)) if node.target == aten.sub.Tensor else None


def _bounds(node: Any) -> tuple[float, float]:
    """What a clamp keeps numbers in; infinite where it does not say, and where it is no number."""
    given = (
        {"min": None, "max": None}
        | dict(zip(_CLAMPED[node.target], node.args[1:], strict=False))
        | node.kwargs
    )
    low, high = given["min"], given["max"]
    low = -math.inf if low is None else low
    high = math.inf if high is None else high
    numbers = isinstance(low, int | float) and isinstance(high, int | float)
    return (float(low), float(high)) if numbers else (math.inf, -math.inf)


_CLAMPED: Mapping[Target, Sequence[str]] = {
    aten.clamp.default: ("min", "max"),
    aten.clamp_min.default: ("min",),
    aten.clamp_max.default: ("max",),
}


class Reduction(NamedTuple):
    """What is reduced over a dimension that has size 1 then; over all of them, and the batch, if `dim` is None."""

    name: str
    source: fx.Node
    dim: int | None


_REDUCTIONS: Mapping[Target, tuple[str, int]] = {
    aten.sum.dim_IntList: ("sum", 1),
    aten.linalg_vector_norm.default: ("norm", 2),
    aten.amax.default: ("max", 1),
    aten.max.dim: ("max", 1),
    aten.logsumexp.default: ("logsumexp", 1),
}
"""What it is, and where among the arguments the dimension stands, before `keepdim`."""


def _reduction(node: Any, restored: int | None = None) -> Reduction | None:
    """What the node reduces, if it still has all dimensions. `restored`: where a later op puts the reduced one."""
    node, restored = _peeled(node, restored)
    kept_off = _adds_nothing(node)
    while _adds_nothing(node):
        node, restored = _peeled(node.args[0], restored)
    found = _reduced(node, restored)
    # Only a sum of exponentials stays what it is when it is kept off 0.
    return None if found is not None and kept_off and found.name != "sum" else found


def _reduced(node: Any, restored: int | None) -> Reduction | None:
    if node.target == operator.getitem and node.args[1] == 0:
        node = node.args[0]
    if node.target == aten.max.default:
        return Reduction("max", node.args[0], None)
    if node.target not in _REDUCTIONS:
        return None
    name, at = _REDUCTIONS[node.target]
    if name == "norm":  # of exponentials: their sum
        name = "sum" if node.args[1] == 1 else name
    dims = node.args[at] if len(node.args) > at else None
    if isinstance(dims, Sequence):
        dims = dims[0] if len(dims) == 1 else None
    if not isinstance(dims, int):
        return None
    dim = dims % value(node.args[0]).ndim
    keeps = len(node.args) > at + 1 and bool(node.args[at + 1])
    return (
        Reduction(name, node.args[0], dim)
        if keeps == (restored is None) and restored in (None, dim)
        else None
    )


def _peeled(node: Any, restored: int | None = None) -> tuple[fx.Node, int | None]:
    """Without copies, expansions, and the op that puts a reduced dimension back, whose place is the second result."""
    while True:
        if node.target in SAME | EXPANSIONS or _takes_all(node):
            node = node.args[0]
        elif restored is None and (back := _put_back(node)) is not None:
            node, restored = node.args[0], back
        else:
            return node, restored


def _takes_all(node: fx.Node) -> bool:
    return node.target == aten.slice.Tensor and shape(node) == shape(node.args[0])  # type: ignore[arg-type]


def _adds_nothing(node: fx.Node) -> bool:
    """Does it keep a sum of exponentials off 0?"""
    if node.target in _CLAMPED:
        return _bounds(node)[0] <= NEGLIGIBLE and _bounds(node)[1] == math.inf
    step = _step(node) if node.target == aten.add.Tensor else None
    return step is not None and abs(step.offset) <= NEGLIGIBLE


def _put_back(node: Any) -> int | None:
    """Where the op adds a dimension of size 1; None if it does something else."""
    if node.target == aten.unsqueeze.default:
        return int(node.args[1] % value(node).ndim)
    if node.target not in SIZES:
        return None
    before, after = shape(node.args[0]), shape(node)
    places = [at for at, size in enumerate(after) if size == 1 and [*after[:at], *after[at + 1 :]] == before]
    return places[0] if len(places) == 1 else None


def _dim_of(reduction: Reduction | None, name: str, source: Any) -> int | None:
    """The dimension, if that is reduced so."""
    fits = reduction is not None and reduction.name == name and _same(reduction.source, source)
    return reduction.dim if reduction is not None and fits else None


def _without_largest(logits: fx.Node, dim: int) -> fx.Node | None:
    """z, if the node is z - max(z), over that dimension or all of them."""
    if logits.target != aten.sub.Tensor or logits.kwargs.get("alpha", 1) != 1:
        return None
    z, largest = logits.args[:2]
    if not isinstance(z, fx.Node) or not isinstance(largest, fx.Node):
        return None
    return z if _is_largest(largest, z, dim) else None


def _is_largest(node: fx.Node, z: fx.Node, dim: int) -> bool:
    found = _reduction(node)
    return found is not None and found.name == "max" and found.dim in (None, dim) and _same(found.source, z)


def _logarithm_of_sum(node: fx.Node, z: fx.Node) -> int | None:
    """The dimension over which the node is log(sum(e^z)), however that is kept from overflowing."""
    dim = _dim_of(_reduction(node), "logsumexp", z)
    if dim is not None:
        return dim
    inner, restored = _peeled(node)
    if inner.target == aten.log.default:
        total = _reduction(inner.args[0], restored)
        exponent = None if total is None else _exponent(total.source)
        if total is None or total.name != "sum" or exponent is None:
            return None
        return total.dim if _same(exponent, z) else None
    if inner.target != aten.add.Tensor or restored is not None:
        return None
    for largest, logarithm in (inner.args[:2], inner.args[1::-1]):
        if not isinstance(largest, fx.Node) or not isinstance(logarithm, fx.Node):
            return None
        # log(sum(e^(z - m))) + m
        within, back = _peeled(logarithm)
        total = _reduction(within.args[0], back) if within.target == aten.log.default else None
        exponent = None if total is None else _exponent(total.source)
        if total is None or total.name != "sum" or total.dim is None or exponent is None:
            continue
        less = _without_largest(exponent, total.dim)
        if less is not None and _same(less, z) and _is_largest(largest, z, total.dim):
            return total.dim
    return None


SAME_WITHIN = 12
"""How deep two expressions are compared."""


def _same(a: Any, b: Any, depth: int = SAME_WITHIN) -> bool:
    """Are they the same calls of the same things, copies or not?"""
    a, b = _original(a), _original(b)
    if a is b:
        return True
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if depth == 0 or a.op != b.op or a.op == "placeholder" or a.target != b.target:
            return False
        return _same([a.args, a.kwargs], [b.args, b.kwargs], depth - 1)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(one, other, depth) for one, other in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key], depth) for key in a)
    return type(a) is type(b) and bool(a == b)


def _original(node: Any) -> Any:
    while isinstance(node, fx.Node) and node.target in SAME:
        node = node.args[0]
    return node


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
        same = [shape(source)[at] for at in before] == [shape(node)[at] for at in after]
        return after[before.index(dim)] if same else None
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
