"""What a captured network's nodes are made of: 3 x + 1, 1 + e^z, a sum over one dimension, log(sum(e^z)) ..."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import fx, ops

from sptrace.compiler.graph.builder import shape, value
from sptrace.compiler.graph.facts import Target
from sptrace.passes.remove_identities import COPIES

aten = ops.aten

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

SAME = COPIES | {aten.detach.default}
EXPANSIONS = {aten.expand.default, aten.expand_as.default}

NEGLIGIBLE = 1e-6
"""What networks add to probabilities, or keep them away from 0 and 1 by, lest a logarithm be infinite."""


class Affine(NamedTuple):
    """factor * x + offset, with numbers that are alike everywhere."""

    x: fx.Node
    factor: float = 1.0
    offset: float = 0.0


def exponent(node: Any) -> fx.Node | None:
    """u, if the node is e^u."""
    given = node.args[0] if isinstance(node, fx.Node) and node.target == aten.exp.default else None
    return given if isinstance(given, fx.Node) else None


def is_one(given: Any) -> bool:
    """Is it the number, or a tensor of ones?"""
    return given == 1 or (isinstance(given, fx.Node) and given.target == aten.ones_like.default)


def one_less(node: Any) -> fx.Node | None:
    """x, if the node is 1 + x."""
    if not isinstance(node, fx.Node) or node.target != aten.add.Tensor:
        return None
    found = [x for x, one in (node.args[:2], node.args[1::-1]) if is_one(one) and isinstance(x, fx.Node)]
    return found[0] if found and node.kwargs.get("alpha", 1) == 1 else None


def affine(node: fx.Node) -> Affine:
    """The node as a multiple of another and a number more, through as many steps as there are."""
    found = Affine(node)
    while (step := _step(found.x)) is not None:
        found = Affine(step.x, found.factor * step.factor, found.factor * step.offset + found.offset)
    return found


def _step(node: Any) -> Affine | None:
    """The one op that the node is as a multiple and a number more; None if it is something else."""
    x, number = [*node.args, 0.0, 0.0][:2]
    if node.target == aten.sub.Tensor and is_one(x):
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


def bounds(node: Any) -> tuple[float, float]:
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


def reduction(node: Any, restored: int | None = None) -> Reduction | None:
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
        return bounds(node)[0] <= NEGLIGIBLE and bounds(node)[1] == math.inf
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


def dim_of(reduction: Reduction | None, name: str, source: Any) -> int | None:
    """The dimension, if that is reduced so."""
    fits = reduction is not None and reduction.name == name and same(reduction.source, source)
    return reduction.dim if reduction is not None and fits else None


def without_largest(logits: fx.Node, dim: int) -> fx.Node | None:
    """z, if the node is z - max(z), over that dimension or all of them."""
    if logits.target != aten.sub.Tensor or logits.kwargs.get("alpha", 1) != 1:
        return None
    z, largest = logits.args[:2]
    if not isinstance(z, fx.Node) or not isinstance(largest, fx.Node):
        return None
    return z if _is_largest(largest, z, dim) else None


def _is_largest(node: fx.Node, z: fx.Node, dim: int) -> bool:
    found = reduction(node)
    return found is not None and found.name == "max" and found.dim in (None, dim) and same(found.source, z)


def logarithm_of_sum(node: fx.Node, z: fx.Node) -> int | None:
    """The dimension over which the node is log(sum(e^z)), however that is kept from overflowing."""
    dim = dim_of(reduction(node), "logsumexp", z)
    if dim is not None:
        return dim
    inner, restored = _peeled(node)
    if inner.target == aten.log.default:
        total = reduction(inner.args[0], restored)
        u = None if total is None else exponent(total.source)
        if total is None or total.name != "sum" or u is None:
            return None
        return total.dim if same(u, z) else None
    if inner.target != aten.add.Tensor or restored is not None:
        return None
    for largest, logarithm in (inner.args[:2], inner.args[1::-1]):
        if not isinstance(largest, fx.Node) or not isinstance(logarithm, fx.Node):
            return None
        # log(sum(e^(z - m))) + m
        within, back = _peeled(logarithm)
        total = reduction(within.args[0], back) if within.target == aten.log.default else None
        u = None if total is None else exponent(total.source)
        if total is None or total.name != "sum" or total.dim is None or u is None:
            continue
        less = without_largest(u, total.dim)
        if less is not None and same(less, z) and _is_largest(largest, z, total.dim):
            return total.dim
    return None


SAME_WITHIN = 12
"""How deep two expressions are compared."""


def same(a: Any, b: Any, depth: int = SAME_WITHIN) -> bool:
    """Are they the same calls of the same things, copies or not?"""
    a, b = _original(a), _original(b)
    if a is b:
        return True
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if depth == 0 or a.op != b.op or a.op == "placeholder" or a.target != b.target:
            return False
        return same([a.args, a.kwargs], [b.args, b.kwargs], depth - 1)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(one, other, depth) for one, other in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key], depth) for key in a)
    return type(a) is type(b) and bool(a == b)


def _original(node: Any) -> Any:
    while isinstance(node, fx.Node) and node.target in SAME:
        node = node.args[0]
    return node
