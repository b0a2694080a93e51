"""Gates that a network writes out of simpler ops: x * (x > 0), (x + |x|) / 2, where(x > 0, x, 0.1 x), max(a, b) ..."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import is_batch, parameter, shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.passes import curves
from sptrace.passes.curves import Gate

aten = torch.ops.aten


class Value(NamedTuple):
    """A function of one number z that is |z|^degree times one number above 0 and another one below.

    z itself is (1, 1, -1), |z| is (1, 1, 1), a number c is (0, c, c), z > 0 is (0, 1, 0).
    """

    degree: float
    above: Any
    below: Any


def inputs(gate: Gate) -> list[fx.Node]:
    """The nodes that it reads."""
    read: list[fx.Node] = []
    fx.node.map_arg(gate.arguments, read.append)
    return read


REACH = 8
"""How many ops may lie between a gate's input and its output."""


class Spellings:
    """Finds out what a node is by what it computes, its inputs' values being known only by their sign.

    Arguments:
        module: functional and canonical.
        dependent: the nodes that depend on the image and can carry a cotangent.
        influenced: the nodes that depend on the image, masks among them.
        known: the gates found so far, of earlier nodes: what they are made of is theirs.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        dependent: set[fx.Node],
        influenced: set[fx.Node],
        known: Mapping[fx.Node, Gate],
    ) -> None:
        self._module = module
        self._dependent = dependent - _flat(module.graph, dependent)
        self._influenced = influenced
        self._position = {node: index for index, node in enumerate(module.graph.nodes)}
        self._first = _first_of_equal_views(module.graph)
        self._read: dict[tuple[fx.Node, fx.Node, bool], Value | None] = {}
        self._known = known

    def gate(self, node: fx.Node) -> Gate | None:
        """The gate that the node is; None if it is none.

        1. a clamp, or one after the other, to [low, high] around 0 ->  hardtanh; mirrored where high is 0
        2. c z above 0 and d z below                                ->  relu (d = 0), leaky_relu (d / c)
        3. maximum(a, b), where(a > b, a, b); minima                ->  amax over the two; -amax of -a and -b
        4. amax(z, dims), first_maximum                             ->  amax
        5. z (1 + erf(z / sqrt 2)) / 2, z relu6(z + 3) / 6 ...      ->  gelu, hardswish ... (`passes.curves`)
        """
        if node not in self._dependent or not _is_map(node) or facts(node).written_for in NO_GATES:
            return None
        self._read.clear()
        return (
            self._clamp(node)
            or self._two_slopes(node)
            or self._largest_of_two(node)
            or self._largest(node)
            or self._curve(node)
        )

    def _clamp(self, node: fx.Node) -> Gate | None:
        bounds = self._bounds(node)
        if bounds is None:
            return None
        z, low, high = bounds
        if low <= 0 < high < math.inf and low > -math.inf:
            return Gate("relu6" if low == 0 else "hardtanh", gates.hardtanh, (z, low, high))
        if -math.inf < low < 0 == high:
            return Gate("relu6", gates.hardtanh, (z, 0.0, -low), -1.0, True)
        return None

    def _bounds(self, node: fx.Node) -> tuple[fx.Node, float, float] | None:
        """(z, low, high) if the node is z between bounds that are numbers."""
        if node.target not in CLAMPS:
            return None
        x, low, high = CLAMPS[node.target](self, *node.args, **node.kwargs)
        if not isinstance(x, fx.Node) or not isinstance(low, float) or not isinstance(high, float):
            return None
        if shape(x) != shape(node):
            return None
        inner = self._bounds(x)
        if inner is None:
            return x, low, high
        z, lower, upper = inner
        return z, min(max(lower, low), high), min(max(upper, low), high)

    def _two_slopes(self, node: fx.Node) -> Gate | None:
        for z in self._inputs(node, VALUES):
            found = self._value(node, z)
            if found is None or found.degree != 1:
                continue
            above, below = found.above, -found.below
            if isinstance(above, Tensor) or isinstance(below, Tensor):
                return _per_channel(z, above, below)
            if below == 0 != above:
                return Gate("relu", gates.relu, (z,), above)
            if above == 0 != below:
                return Gate("relu", gates.relu, (z,), -below, True)
            if abs(above) != abs(below):
                return Gate("leaky_relu", gates.leaky_relu, (z, below / above), above)
        return None

    def _inputs(self, node: fx.Node, through: Collection[Target]) -> Iterator[fx.Node]:
        """What the node may be a function of by such ops, the nearest first: maps of its own shape."""
        seen, layer = {node}, [node]
        for _ in range(REACH):
            above = [given for one in layer if one.target in through for given in one.all_input_nodes]
            layer = [one for one in dict.fromkeys(above) if one in self._influenced and one not in seen]
            seen.update(layer)
            for one in layer:
                if one in self._dependent and _is_map(one) and shape(one) == shape(node):
                    yield one

    def _curve(self, node: fx.Node) -> Gate | None:
        """A gate that is no straight line; others that it is written with, a ReLU6 of a Hardswish, are its parts."""
        if node.target in ENDS_OF_CURVES and curves.bends(node, REACH):
            for z in self._inputs(node, curves.POINTWISE):
                sampled = curves.values(node, z, self._first, self.number)
                gate = None if sampled is None else curves.named(sampled, z)
                if gate is not None and not self._is_multiple(node, gate):
                    return gate
        return None

    def _is_multiple(self, node: fx.Node, gate: Gate) -> bool:
        """Is it that very gate, found already, times a number?"""
        found = [self._known[one] for one in node.all_input_nodes if one in self._known]
        return any((one.kind, one.arguments[0]) == (gate.kind, gate.arguments[0]) for one in found)

    def _value(self, item: object, z: fx.Node, *, passing: bool = False) -> Value | None:
        """The item as a function of z; None if it is none, or not such a one.

        Arguments:
            item: a node, or a number.
            z: the node.
            passing: look through gates that were found already. Where no cotangent comes back, these lose none.
        """
        if isinstance(item, fx.Node) and self._first[item] is self._first[z]:
            return Value(1, 1.0, -1.0)
        number = self.number(item)
        if number is not None:
            return Value(0, number, number)
        if not isinstance(item, fx.Node) or (item in self._known and not passing):
            return None
        if item.target not in VALUES or self._position[item] < self._position[z]:
            return None
        key = (item, z, passing)
        if key not in self._read:
            read = partial(self._value, z=z, passing=passing or item.target in STEPS)
            self._read[key] = VALUES[item.target](read, *item.args, **item.kwargs)
        return self._read[key]

    def number(self, item: object) -> Any:
        """The number that a constant consists of; a tensor if these are several; None if it is no constant."""
        if isinstance(item, int | float):
            return float(item)
        while isinstance(item, fx.Node) and item.target in (aten.expand.default, aten.reshape.default):
            item = item.args[0]
        if not isinstance(item, fx.Node) or item.op != "get_attr":
            return None
        data = parameter(self._module, item)
        if not data.numel() or data.is_complex():
            return None
        first = data.reshape(-1)[0]
        return float(first) if bool((data == first).all()) else data.double()

    def _largest_of_two(self, node: fx.Node) -> Gate | None:
        largest, pair = None, list(node.args[:2])
        if node.target in (aten.maximum.default, aten.minimum.default):
            largest = node.target == aten.maximum.default
        elif node.target == aten.where.self:
            condition, *pair = node.args
            largest = self._chooses_larger(condition, pair)
        if largest is None or pair[0] is pair[1] or not all(self._spans(one, node) for one in pair):
            return None
        arguments = (pair, [1], False)
        return Gate("max_pool", gates.amax, arguments, 1.0 if largest else -1.0, not largest)

    def _chooses_larger(self, condition: object, pair: Sequence[Any]) -> bool | None:
        """Of where(a > b, a, b) and its like: is the larger one chosen? None if it is something else."""
        if not isinstance(condition, fx.Node) or condition.target not in COMPARISONS:
            return None
        compare = COMPARISONS[condition.target]
        given = [self._first.get(one) for one in (*condition.args, *pair) if isinstance(one, fx.Node)]
        if compare(1, 0) == compare(0, 1) or len(given) < 4:
            return None
        if given[:2] == given[2:]:
            return bool(compare(1, 0))
        return bool(compare(0, 1)) if given[:2] == given[:1:-1] else None

    def _spans(self, one: object, node: fx.Node) -> bool:
        """Is it a map [N, ...] of pictures that depends on the image, like the node itself?"""
        if not isinstance(one, fx.Node) or one not in self._dependent or len(shape(one)) != len(shape(node)):
            return False
        return value(one).ndim > 1 and is_batch(node, 0) and is_batch(one, 0)

    def _largest(self, node: fx.Node) -> Gate | None:
        if node.target not in REDUCTIONS:
            return None
        x, dims, keepdim = REDUCTIONS[node.target](*node.args, **node.kwargs)
        rank = value(x).ndim
        reduced = sorted({dim % rank for dim in dims} or range(rank))
        return Gate("max_pool", gates.amax, (x, reduced, keepdim))


def _first_of_equal_views(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """For each node the first that is the same part of the same tensor: x[:, :8] may be written twice."""
    first: dict[fx.Node, fx.Node] = {}
    seen: dict[str, fx.Node] = {}
    for node in graph.nodes:
        first[node] = node
        if node.target in VIEWS:
            read = fx.node.map_arg((node.args, node.kwargs), lambda one: first[one])
            first[node] = seen.setdefault(f"{node.target} {read}", node)
    return first


ENDS_OF_CURVES: set[Target] = {
    aten.add.Tensor,
    aten.div.Tensor,
    aten.log.default,
    aten.log1p.default,
    aten.mul.Tensor,
    aten.neg.default,
    aten.sub.Tensor,
    aten.where.self,
}
"""The last op of a smooth gate."""

NO_GATES: set[Target] = {
    aten.aminmax.default,
    aten.cummax.default,
    aten.cummin.default,
    aten.grid_sampler.default,
    aten.grid_sampler_2d.default,
    aten.grid_sampler_3d.default,
    aten.log_softmax.int,
    aten.logaddexp.default,
    aten.logaddexp2.default,
    aten.logcumsumexp.default,
    aten.logsumexp.default,
}
"""Ops that other passes write out with maxima, choices or clamps, which are none of the network's."""

VIEWS: set[Target] = {
    aten.permute.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.transpose.int,
    aten.unsqueeze.default,
}


def _flat(graph: fx.Graph, dependent: set[fx.Node]) -> set[fx.Node]:
    """What depends on the image by steps alone: no cotangent passes there."""
    flat: set[fx.Node] = set()
    for node in graph.nodes:
        read = [one for one in node.all_input_nodes if one in dependent]
        if node in dependent and read and (node.target in STEPS or all(one in flat for one in read)):
            flat.add(node)
    return flat


def _is_map(node: fx.Node) -> bool:
    given = facts(node).first
    return isinstance(given, Tensor) and given.is_floating_point()


def _reduction(
    x: fx.Node, dims: Sequence[int] | int = (), keepdim: bool = False
) -> tuple[fx.Node, Sequence[int], bool]:
    return x, [dims] if isinstance(dims, int) else dims, keepdim


REDUCTIONS: dict[Target, Callable[..., tuple[fx.Node, Sequence[int], bool]]] = {
    aten.amax.default: _reduction,
    gates.first_maximum: _reduction,
}
"""Maxima over dimensions, brought to amax's arguments."""


def _per_channel(z: fx.Node, above: Any, below: Any) -> Gate | None:
    """One slope below 0 for every channel, as of a PReLU."""
    if isinstance(above, Tensor) or above == 0 or not isinstance(below, Tensor):
        return None
    return Gate("leaky_relu", gates.leaky_relu, (z, below / above), above)


Reader = Callable[[object], Value | None]


def _linear(sign: int) -> Callable[..., Value | None]:
    def combined(read: Reader, a: object, b: object, alpha: float = 1) -> Value | None:
        first, second = read(a), read(b)
        return _pointwise(lambda one, other: one + sign * alpha * other, first, second)

    return combined


def _reversed_difference(read: Reader, a: object, b: object, alpha: float = 1) -> Value | None:
    return _pointwise(lambda one, other: other - alpha * one, read(a), read(b))


def _pointwise(function: Callable[..., Any], *given: Value | None) -> Value | None:
    """The function of values of one degree; 0 has any."""
    found = [one for one in given if one is not None]
    degrees = {one.degree for one in found if not _is_zero(one)}
    if len(found) < len(given) or len(degrees) > 1:
        return None
    above, below = (function(*(one[side] for one in found)) for side in (1, 2))
    return Value(max(degrees, default=0), above, below)


def _is_zero(given: Value) -> bool:
    return not any(isinstance(one, Tensor) or one != 0 for one in given[1:])


def _product(read: Reader, a: object, b: object) -> Value | None:
    first, second = read(a), read(b)
    if first is None or second is None:
        return None
    return Value(first.degree + second.degree, first.above * second.above, first.below * second.below)


def _quotient(read: Reader, a: object, b: object, **options: object) -> Value | None:
    first, second = read(a), read(b)
    if options or first is None or second is None:
        return None
    if any(isinstance(one, Tensor) or one == 0 for one in second[1:]):
        return None
    return Value(first.degree - second.degree, first.above / second.above, first.below / second.below)


def _power(read: Reader, a: object, exponent: float) -> Value | None:
    found = read(a)
    if found is None or exponent not in (0.5, 2) or any(isinstance(one, Tensor) for one in found[1:]):
        return None
    if exponent == 0.5 and min(found.above, found.below) < 0:
        return None
    return Value(found.degree * exponent, found.above**exponent, found.below**exponent)


def _sign(read: Reader, a: object) -> Value | None:
    found = read(a)
    if found is None or any(isinstance(one, Tensor) for one in found[1:]):
        return None
    return Value(0, *(float(one > 0) - float(one < 0) for one in found[1:]))


def _heaviside(read: Reader, a: object) -> Value | None:
    found = _sign(read, a)
    return None if found is None else Value(0, max(found.above, 0.0), max(found.below, 0.0))


def _comparison(compare: Callable[[Any, Any], Any]) -> Callable[..., Value | None]:
    def compared(read: Reader, a: object, b: object) -> Value | None:
        found = _pointwise(lambda one, other: float(compare(one, other)), *_numbers(read(a), read(b)))
        return None if found is None else found._replace(degree=0)

    return compared


def _numbers(*given: Value | None) -> list[Value | None]:
    return [None if one is None or any(isinstance(side, Tensor) for side in one) else one for one in given]


def _choice(read: Reader, condition: object, a: object, b: object) -> Value | None:
    return _pointwise_choice(_numbers(read(condition))[0], read(a), read(b))


def _pointwise_choice(condition: Value | None, a: Value | None, b: Value | None) -> Value | None:
    if condition is None or condition.degree != 0 or a is None or b is None:
        return None
    degrees = {one.degree for one in (a, b) if not _is_zero(one)}
    if len(degrees) > 1:
        return None
    above, below = (a[side] if condition[side] else b[side] for side in (1, 2))
    return Value(max(degrees, default=0), above, below)


def _extreme(choose: Callable[[Any, Any], Any]) -> Callable[..., Value | None]:
    def chosen(read: Reader, a: object, b: object) -> Value | None:
        return _pointwise(choose, *_numbers(read(a), read(b)))

    return chosen


def _between(read: Reader, x: object, low: object = None, high: object = None) -> Value | None:
    found = _numbers(read(x))[0]
    for bound, choose in ((low, max), (high, min)):
        if bound is not None and bound not in (math.inf, -math.inf):
            found = _pointwise(choose, found, read(bound))
    return found


def _same(read: Reader, a: object, *options: object, **more: object) -> Value | None:
    return read(a)


COMPARISONS: dict[Target, Callable[[Any, Any], Any]] = {
    **{aten_op: operator.gt for aten_op in (aten.gt.Scalar, aten.gt.Tensor)},
    **{aten_op: operator.ge for aten_op in (aten.ge.Scalar, aten.ge.Tensor)},
    **{aten_op: operator.lt for aten_op in (aten.lt.Scalar, aten.lt.Tensor)},
    **{aten_op: operator.le for aten_op in (aten.le.Scalar, aten.le.Tensor)},
    **{aten_op: operator.eq for aten_op in (aten.eq.Scalar, aten.eq.Tensor)},
    **{aten_op: operator.ne for aten_op in (aten.ne.Scalar, aten.ne.Tensor)},
}

STEPS: set[Target] = {aten.sign.default, aten.heaviside.default, aten.detach.default, *COMPARISONS}
"""What lets no cotangent through."""

VALUES: dict[Target, Callable[..., Value | None]] = {
    aten.add.Tensor: _linear(1),
    aten.add.Scalar: _linear(1),
    aten.sub.Tensor: _linear(-1),
    aten.sub.Scalar: _linear(-1),
    aten.rsub.Tensor: _reversed_difference,
    aten.rsub.Scalar: _reversed_difference,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
    aten.neg.default: lambda read, a: _pointwise(operator.neg, read(a)),
    aten.abs.default: lambda read, a: _pointwise(abs, read(a)),
    aten.sign.default: _sign,
    aten.sqrt.default: lambda read, a: _power(read, a, 0.5),
    aten.heaviside.default: lambda read, a, b: _heaviside(read, a),
    aten.maximum.default: _extreme(max),
    aten.minimum.default: _extreme(min),
    aten.clamp_min.default: _between,
    aten.clamp_max.default: lambda read, x, high: _between(read, x, None, high),
    aten.clamp.default: _between,
    aten.relu.default: lambda read, x: _between(read, x, 0.0),
    aten.where.self: _choice,
    aten.where.ScalarOther: _choice,
    aten.where.ScalarSelf: _choice,
    aten.where.Scalar: _choice,
    aten.to.dtype: _same,
    aten.detach.default: _same,
    aten.logical_not.default: lambda read, a: _pointwise(lambda one: float(not one), *_numbers(read(a))),
    aten.logical_and.default: lambda read, a, b: _pointwise(lambda one, other: one * other, read(a), read(b)),
    **{target: _comparison(compare) for target, compare in COMPARISONS.items()},
}
"""What each op makes of values."""


Bounded = tuple[object, object, object]


def _bounded(spellings: Spellings, x: object, low: object = None, high: object = None) -> Bounded:
    return (
        x,
        -math.inf if low is None else spellings.number(low),
        math.inf if high is None else spellings.number(high),
    )


def _bounded_by(side: int) -> Callable[..., Bounded]:
    def bounded(spellings: Spellings, a: object, b: object) -> Bounded:
        x, bound = (b, a) if spellings.number(b) is None else (a, b)
        return _bounded(spellings, x, *((bound, None) if side == 0 else (None, bound)))

    return bounded


CLAMPS: dict[Target, Callable[..., Bounded]] = {
    aten.clamp.default: _bounded,
    aten.clamp_min.default: _bounded,
    aten.clamp_max.default: lambda spellings, x, high: _bounded(spellings, x, None, high),
    aten.relu.default: lambda spellings, x: _bounded(spellings, x, 0.0),
    aten.relu6.default: lambda spellings, x: _bounded(spellings, x, 0.0, 6.0),
    aten.hardtanh.default: lambda spellings, x, low=-1.0, high=1.0: _bounded(spellings, x, low, high),
    aten.maximum.default: _bounded_by(0),
    aten.minimum.default: _bounded_by(1),
}
"""Of each op that bounds numbers: these, and the bounds."""
