"""Complex numbers become pairs of real ones, and Fourier transforms products with matrices of cosines and sines."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.compiler.graph import gates
from sptrace.compiler.graph.builder import GraphBuilder, parameter, static_shape, value
from sptrace.compiler.graph.facts import Target, facts
from sptrace.errors import UnsupportedError

aten = torch.ops.aten

Pair = tuple[fx.Node, fx.Node]
"""Real and imaginary part."""

NORMALISED: dict[int, Callable[[int], float]] = {0: lambda n: 1.0, 1: lambda n: n**-0.5, 2: lambda n: 1 / n}
"""What a transform of n numbers is multiplied by, by ATen's numbers for it."""

STRUCTURAL: set[Target] = {
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.neg.default,
    aten.sum.dim_IntList,
    aten.mean.dim,
    aten.cat.default,
    aten.stack.default,
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.mT.default,
    aten.expand.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.select.int,
    aten.slice.Tensor,
    aten.narrow.default,
    aten.index.Tensor,
    aten.index_select.default,
    aten.roll.default,
    aten.flip.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.repeat.default,
    aten.constant_pad_nd.default,
    aten.copy.default,
    aten.where.self,
}
"""Ops that do the same to both parts."""


def separate_complex(module: fx.GraphModule) -> int:
    """Rewrite; returns how many ops were complex.

    1. view_as_complex(x), complex(a, b), polar(r, t)  ->  the pair
    2. a z + b w, cat([z, w]), z[:, 1:], sum(z) ...    ->  the same of real and of imaginary parts
    3. z w, matmul(z, w), einsum, z / w, exp(z), conj  ->  by their formulas
    4. abs(z), angle(z), view_as_real(z)               ->  root(a a + b b, 2), atan2(b, a), stack([a, b], -1)
    5. _fft_r2c(x), _fft_c2c(z), _fft_c2r(z)           ->  x C, x S along each dimension in turn, C = cos(2 pi k n / N),
       S = -sin(2 pi k n / N); back to real numbers each but the first and the middle counts twice
    """
    builder = GraphBuilder(module)
    separate = _Separation(builder)
    count = 0
    for node in list(module.graph.nodes):
        if node.op == "output" or not _touches_complex(node):
            continue
        with builder.replacing(node):
            new = separate(node)
        if new is not None:
            node.replace_all_uses_with(new)
        count += 1
    if count:
        module.graph.eliminate_dead_code()
    return count


def _is_complex(node: fx.Node) -> bool:
    given = facts(node).first
    return isinstance(given, Tensor) and given.is_complex()


def _touches_complex(node: fx.Node) -> bool:
    return _is_complex(node) or any(_is_complex(argument) for argument in node.all_input_nodes)


class _Separation:
    """Keeps the pair of every complex node."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._pairs: dict[fx.Node, Pair] = {}

    def __call__(self, node: fx.Node) -> fx.Node | None:
        """The real node that stands for a node with complex inputs; None where it is complex itself."""
        if node.op == "get_attr":
            data = parameter(self._builder.module, node)
            data = data.resolve_conj()
            parts = [
                self._builder.constant(f"{node.target}_{name}", part.contiguous())
                for name, part in (("real", data.real), ("imaginary", data.imag))
            ]
            self._pairs[node] = (parts[0], parts[1])
            return None
        if node.target in STRUCTURAL:
            self._pairs[node] = self._alike(node)
            return None
        if node.target not in RULES:
            where = facts(node).source
            raise UnsupportedError(
                f"{node.target} ({where}) of complex numbers has no pullback: write it in real ones"
            )
        result = RULES[node.target](self, node, *node.args, **node.kwargs)
        if isinstance(result, fx.Node):
            return result
        self._pairs[node] = result
        return None

    def call(self, target: Target, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of real numbers."""
        return self._builder.call(target, *args, **kwargs)

    def constant(self, data: Tensor) -> fx.Node:
        """A matrix of a transform."""
        return self._builder.constant("transform", data.float())

    def pair(self, given: object) -> tuple[Any, Any]:
        """Both parts of an argument: of a complex node, of a real one (no imaginary part: 0), of a number."""
        if isinstance(given, fx.Node) and given in self._pairs:
            return self._pairs[given]
        if isinstance(given, complex):
            return given.real, given.imag
        return given, 0

    def _alike(self, node: fx.Node) -> Pair:
        def part(index: int) -> fx.Node:
            def pick(argument: fx.Node) -> Any:
                if argument in self._pairs:
                    return self._pairs[argument][index]
                return argument if index == 0 or not value_is_number(argument) else self.zeros(argument)

            args, kwargs = fx.node.map_arg((node.args, node.kwargs), pick)
            return self.call(node.target, *args, **kwargs)  # type: ignore[arg-type]

        if node.target in (aten.add.Tensor, aten.sub.Tensor):
            return self._sum(node)
        return part(0), part(1)

    def zeros(self, like: fx.Node) -> fx.Node:
        """As many zeros."""
        return self.call(aten.mul.Tensor, like, 0.0)

    def _sum(self, node: fx.Node) -> Pair:
        alpha = node.kwargs.get("alpha", 1)
        parts = []
        (a, ai), (b, bi) = (self.pair(argument) for argument in node.args[:2])
        for first, second in ((a, b), (ai, bi)):
            parts.append(self._combined(node.target, first, second, alpha))
        return parts[0], parts[1]

    def _combined(self, target: Any, first: Any, second: Any, alpha: Any) -> fx.Node:
        if isinstance(second, fx.Node) and not isinstance(first, fx.Node):
            swapped = second if target == aten.add.Tensor else self.call(aten.neg.default, second)
            scaled = swapped if alpha == 1 else self.call(aten.mul.Tensor, swapped, alpha)
            return self.call(aten.add.Tensor, scaled, first)
        return self.call(target, first, second, **({} if alpha == 1 else {"alpha": alpha}))

    def product(self, of: Callable[[Any, Any], fx.Node], a: object, b: object) -> Pair:
        """(a + a' i)(b + b' i), what is 0 left out."""
        (ar, ai), (br, bi) = self.pair(a), self.pair(b)
        terms = [
            None if 0 in (x, y) and (not isinstance(x, fx.Node) or not isinstance(y, fx.Node)) else of(x, y)
            for x, y in ((ar, br), (ai, bi), (ar, bi), (ai, br))
        ]
        real = self.joined(aten.sub.Tensor, terms[0], terms[1])
        imaginary = self.joined(aten.add.Tensor, terms[2], terms[3])
        like = real if real is not None else imaginary
        assert like is not None
        return real or self.zeros(like), imaginary or self.zeros(like)

    def joined(self, target: Target, first: fx.Node | None, second: fx.Node | None) -> fx.Node | None:
        """Sum or difference of what there is."""
        if first is None or second is None:
            negative = second is not None and target == aten.sub.Tensor
            return self.call(aten.neg.default, second) if negative else first or second
        return self.call(target, first, second)

    def along(self, x: fx.Node, dim: int, matrix: fx.Node) -> fx.Node:
        """x times a matrix along a dimension."""
        rank = value(x).ndim
        order = [each for each in range(rank) if each != dim] + [dim]
        turned = x if dim == rank - 1 else self.call(aten.permute.default, x, order)
        product = self.call(aten.matmul.default, turned, matrix)
        back = [order.index(each) for each in range(rank)]
        return product if dim == rank - 1 else self.call(aten.permute.default, product, back)

    def transformed(self, z: Pair, dim: int, sign: int, factor: float) -> Pair:
        """The discrete Fourier transform along a dimension: sum over n of z_n exp(sign 2 pi i k n / N)."""
        (size,) = static_shape(z[0], [dim])
        cosines, sines = (self.constant(factor * part) for part in _waves(size, size))
        (ac, as_), (bc, bs) = ((self.along(part, dim, cosines), self.along(part, dim, sines)) for part in z)
        ahead, behind = (aten.add.Tensor, aten.sub.Tensor) if sign < 0 else (aten.sub.Tensor, aten.add.Tensor)
        return self.call(ahead, ac, bs), self.call(behind, bc, as_)


def value_is_number(node: fx.Node) -> bool:
    """Does the node give real numbers, other than masks, places and sizes?"""
    given = facts(node).first
    return isinstance(given, Tensor) and given.is_floating_point()


def _waves(size: int, frequencies: int) -> tuple[Tensor, Tensor]:
    """cos(2 pi k n / N) and sin(2 pi k n / N), float64 [n, k]."""
    steps = torch.outer(torch.arange(size), torch.arange(frequencies)) % size
    angles = steps.double() * (2 * math.pi / size)
    return tuple(torch.where(part.abs() < 1e-15, 0.0, part) for part in (angles.cos(), angles.sin()))  # type: ignore[return-value]


def _factor(x: fx.Node, dims: Sequence[int], normalisation: int) -> float:
    return NORMALISED[normalisation](math.prod(static_shape(x, dims)))


def _from_real(
    separate: _Separation, node: fx.Node, x: fx.Node, dims: Sequence[int], normalisation: int, onesided: bool
) -> Pair:
    rank = value(x).ndim
    *others, last = [dim % rank for dim in dims]
    (size,) = static_shape(x, [last])
    factor = _factor(x, dims, normalisation)
    cosines, sines = _waves(size, size // 2 + 1 if onesided else size)
    pair = (
        separate.along(x, last, separate.constant(factor * cosines)),
        separate.along(x, last, separate.constant(-factor * sines)),
    )
    for dim in others:
        pair = separate.transformed(pair, dim, -1, 1.0)
    return pair


def _between_complex(
    separate: _Separation, node: fx.Node, z: fx.Node, dims: Sequence[int], normalisation: int, forward: bool
) -> Pair:
    pair, factor = separate.pair(z), _factor(z, dims, normalisation)
    for dim in dims:
        pair = separate.transformed(pair, dim % value(z).ndim, -1 if forward else 1, factor)
        factor = 1.0
    return pair


def _to_real(
    separate: _Separation, node: fx.Node, z: fx.Node, dims: Sequence[int], normalisation: int, size: int
) -> fx.Node:
    rank = value(z).ndim
    *others, last = [dim % rank for dim in dims]
    pair = separate.pair(z)
    for dim in others:
        pair = separate.transformed(pair, dim, 1, 1.0)
    factor = NORMALISED[normalisation](size * math.prod(static_shape(z, others)))
    frequencies = size // 2 + 1
    times = torch.full((frequencies, 1), 2.0 * factor, dtype=torch.float64)
    times[0] = factor
    if size % 2 == 0:
        times[-1] = factor
    cosines, sines = (separate.constant(part.T * times) for part in _waves(size, frequencies))
    return separate.call(
        aten.sub.Tensor, separate.along(pair[0], last, cosines), separate.along(pair[1], last, sines)
    )


def _as_complex(separate: _Separation, node: fx.Node, x: fx.Node) -> Pair:
    last = value(x).ndim - 1
    return separate.call(aten.select.int, x, last, 0), separate.call(aten.select.int, x, last, 1)


def _as_real(separate: _Separation, node: fx.Node, z: fx.Node) -> fx.Node:
    return separate.call(aten.stack.default, list(separate.pair(z)), value(z).ndim)


def _of_parts(separate: _Separation, node: fx.Node, real: fx.Node, imaginary: fx.Node) -> Pair:
    return real, imaginary


def _polar(separate: _Separation, node: fx.Node, size: fx.Node, angle: fx.Node) -> Pair:
    """Sizes are not negative; if they are, PyTorch's own derivative has the other sign."""
    parts = [
        separate.call(aten.mul.Tensor, size, separate.call(wave, angle))
        for wave in (aten.cos.default, aten.sin.default)
    ]
    return parts[0], parts[1]


def _exp(separate: _Separation, node: fx.Node, z: fx.Node) -> Pair:
    real, imaginary = separate.pair(z)
    return _polar(separate, node, separate.call(aten.exp.default, real), imaginary)


def _conjugate(separate: _Separation, node: fx.Node, z: fx.Node) -> Pair:
    real, imaginary = separate.pair(z)
    return real, separate.call(aten.neg.default, imaginary)


def _squared_size(separate: _Separation, z: object) -> fx.Node:
    squares = [separate.call(aten.mul.Tensor, part, part) for part in separate.pair(z)]
    return separate.call(aten.add.Tensor, *squares)


def _size(separate: _Separation, node: fx.Node, z: fx.Node) -> fx.Node:
    """0 has the derivative 0, as in PyTorch."""
    return separate.call(gates.root, _squared_size(separate, z), 2)


def _angle(separate: _Separation, node: fx.Node, z: fx.Node) -> fx.Node:
    real, imaginary = separate.pair(z)
    return separate.call(aten.atan2.default, imaginary, real)


def _quotient(separate: _Separation, node: fx.Node, a: fx.Node, b: fx.Node | complex) -> Pair:
    if isinstance(b, complex):
        return separate.product(_times(separate), a, 1 / b)
    real, imaginary = separate.pair(b)
    if not isinstance(imaginary, fx.Node):
        parts = [separate.call(aten.div.Tensor, part, real) for part in separate.pair(a)]
        return parts[0], parts[1]
    # a / b = a b* / |b|^2
    (ar, ai), size = separate.pair(a), _squared_size(separate, b)
    top = [
        separate.joined(target, *(_term(separate, x, y) for x, y in terms))
        for target, terms in (
            (aten.add.Tensor, ((ar, real), (ai, imaginary))),
            (aten.sub.Tensor, ((ai, real), (ar, imaginary))),
        )
    ]
    parts = [separate.call(aten.div.Tensor, part, size) for part in top]
    return parts[0], parts[1]


def _reciprocal(separate: _Separation, node: fx.Node, z: fx.Node) -> Pair:
    (real, imaginary), size = separate.pair(z), _squared_size(separate, z)
    below = separate.call(aten.div.Tensor, imaginary, size)
    return separate.call(aten.div.Tensor, real, size), separate.call(aten.neg.default, below)


def _term(separate: _Separation, x: Any, y: fx.Node) -> fx.Node | None:
    return separate.call(aten.mul.Tensor, y, x) if isinstance(x, fx.Node) or x != 0 else None


def _times(separate: _Separation) -> Callable[[Any, Any], fx.Node]:
    def times(x: Any, y: Any) -> fx.Node:
        return separate.call(aten.mul.Tensor, *((x, y) if isinstance(x, fx.Node) else (y, x)))

    return times


def _product(separate: _Separation, node: fx.Node, a: Any, b: Any) -> Pair:
    if node.target in (aten.mul.Tensor, aten.mul.Scalar):
        return separate.product(_times(separate), a, b)
    return separate.product(lambda x, y: separate.call(node.target, x, y), a, b)  # type: ignore[arg-type]


def _einsum(
    separate: _Separation, node: fx.Node, equation: str, factors: Sequence[fx.Node], **_: Any
) -> Pair:
    if len(factors) != 2:
        raise UnsupportedError(f"einsum {equation!r} of complex numbers: multiply two factors at a time")
    return separate.product(lambda x, y: separate.call(aten.einsum.default, equation, [x, y]), *factors)


def _square(separate: _Separation, node: fx.Node, z: fx.Node, exponent: float) -> Pair:
    if exponent != 2:
        raise UnsupportedError("of powers of complex numbers the square alone has a pullback")
    return separate.product(_times(separate), z, z)


def _converted(separate: _Separation, node: fx.Node, x: fx.Node, *_: Any, **__: Any) -> Pair | fx.Node:
    real, imaginary = separate.pair(x)
    if not _is_complex(node):
        return real  # type: ignore[no-any-return]
    return real, imaginary if isinstance(imaginary, fx.Node) else separate.zeros(real)


def _picked(separate: _Separation, node: fx.Node, several: fx.Node, index: int) -> Pair:
    raise UnsupportedError(f"{several.target} of complex numbers: slice them")


RULES: dict[Target, Callable[..., Pair | fx.Node]] = {
    aten._fft_r2c.default: _from_real,
    aten._fft_c2c.default: _between_complex,
    aten._fft_c2r.default: _to_real,
    aten.view_as_complex.default: _as_complex,
    aten.view_as_real.default: _as_real,
    aten.complex.default: _of_parts,
    aten.polar.default: _polar,
    aten.exp.default: _exp,
    aten._conj.default: _conjugate,
    aten._conj_physical.default: _conjugate,
    aten.abs.default: _size,
    aten.angle.default: _angle,
    aten.mul.Tensor: _product,
    aten.mul.Scalar: _product,
    aten.matmul.default: _product,
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.einsum.default: _einsum,
    aten.div.Tensor: _quotient,
    aten.div.Scalar: _quotient,
    aten.reciprocal.default: _reciprocal,
    aten.pow.Tensor_Scalar: _square,
    aten.to.dtype: _converted,
    aten._to_copy.default: _converted,
    operator.getitem: _picked,
}
