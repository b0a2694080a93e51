"""Gates that a network writes out of simpler calls, found by what they compute: x * (x > 0), (x + |x|) / 2 ...

The reference sees one call at a time. So it notes on the result of an element-wise call how it was made. Where a result
may have a kink, the calls that it was made by are repeated with other numbers in place of an earlier tensor z: is the
result c z above 0 and d z below, whatever z? Is it z between two bounds? Nothing is known here of the names of gates,
nor is anything shared with the compiler, which reads a graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from sptrace.compiler.reference import eager_curves

T = TypeVar("T")

REACH = 8
"""How many calls may lie between a gate's input and its output."""

SIZES = (1.0, 1e-8, 1e6)
"""Of the numbers that are tried, so that a threshold beside 0 shows."""

COMPARING = frozenset(
    [
        "gt",
        "lt",
        "ge",
        "le",
        "eq",
        "ne",
        "greater",
        "less",
        "greater_equal",
        "less_equal",
        "not_equal",
        "heaviside",
        "sign",
        "sgn",
        "detach",
    ]
)
"""Calls that let no cotangent through."""

CLAMPING = frozenset(
    [
        "relu",
        "relu6",
        "hardtanh",
        "clamp",
        "clip",
        "clamp_min",
        "clamp_max",
        "maximum",
        "minimum",
        "max",
        "min",
        "fmax",
        "fmin",
    ]
)

CURVED = frozenset(
    [
        "clamp",
        "clip",
        "clamp_max",
        "elu",
        "erf",
        "erfc",
        "exp",
        "expit",
        "expm1",
        "hardsigmoid",
        "hardtanh",
        "max",
        "maximum",
        "min",
        "minimum",
        "relu6",
        "rpow",
        "sigmoid",
        "softplus",
        "tanh",
    ]
)
"""One of these is in every gate that is no straight line."""

_KINKED = (
    COMPARING - {"detach"}
    | CLAMPING
    | frozenset(["abs", "absolute", "where", "masked_fill", "setitem", "index_put", "sqrt", "threshold"])
)

_SMOOTH = CURVED | frozenset(
    [
        "addcdiv",
        "addcmul",
        "log",
        "log1p",
        "reciprocal",
        "add",
        "radd",
        "iadd",
        "sub",
        "subtract",
        "rdiv",
        "rsub",
        "isub",
        "mul",
        "multiply",
        "rmul",
        "imul",
        "div",
        "divide",
        "true_divide",
        "truediv",
        "rtruediv",
        "itruediv",
        "neg",
        "negative",
        "pow",
        "square",
        "float",
        "to",
        "type",
        "type_as",
        "bool",
        "logical_not",
        "logical_and",
        "logical_or",
        "bitwise_not",
        "bitwise_and",
        "bitwise_or",
        "invert",
        "and",
        "or",
        "detach",
        "clone",
        "contiguous",
        "getitem",
    ]
)

_IN_PLACE = frozenset(["iadd", "isub", "imul", "itruediv", "setitem"])


_INDEXING = frozenset(["getitem", "setitem", "index_put"])
"""Element-wise where the index is a mask."""


class Token(NamedTuple):
    """A tensor as it was before anything was written into it later.

    Equal are two that are the same part of the same memory: x[:, :8] may be written twice.
    """

    tensor: Tensor
    version: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Token) and self._place() == other._place()

    def __hash__(self) -> int:
        return hash(self._place())

    def _place(self) -> tuple[object, ...]:
        one = self.tensor
        return one.data_ptr(), tuple(one.shape), one.stride(), one.dtype, one.requires_grad, self.version


@dataclass
class Made:
    """How a tensor was made: by a call with arguments in which tensors are tokens.

    `gate`: what is known to be one. `kinked`: is there a kink that is no gate's so far? `curved`: is it more than a
    line, and no gate written out so far? `roots`: what all of it was made of that depends on the image.
    """

    name: str
    func: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    in_place: bool
    kinked: bool = field(init=False)
    curved: bool = field(init=False)
    roots: frozenset[Token] = field(init=False)
    gate: bool = False

    def __post_init__(self) -> None:
        given = [(token, _made(token)) for token in self.tokens]
        origins = [made for _, made in given if made is not None]
        self.kinked = self.name in _KINKED or any(made.kinked for made in origins)
        self.curved = self.name in CURVED or any(made.curved for made in origins)
        own = (token for token, made in given if made is None and is_marked(token.tensor))
        self.roots = frozenset(own).union(*(made.roots for made in origins))

    @property
    def tokens(self) -> list[Token]:
        """What was read."""
        return [item for item in _leaves((self.args, self.kwargs)) if isinstance(item, Token)]

    def run(self, read: Callable[[Token], Tensor]) -> Tensor:
        """Call once more, with what `read` gives for tokens; nothing of the network's is written to."""
        args, kwargs = _mapped(
            lambda item: read(item) if isinstance(item, Token) else item, (self.args, self.kwargs)
        )
        if self.in_place:
            args = (args[0].clone(), *args[1:])
        result = self.func(*args, **kwargs)
        answer: Tensor = args[0] if self.in_place else result
        return answer


class Slopes(NamedTuple):
    """The result is above * z where z > 0, else below * z; one number for all, or a tensor."""

    z: Token
    above: float
    below: float | Tensor


class Bounds(NamedTuple):
    """The result is z between low and high."""

    z: Token
    low: float
    high: float


class Curve(NamedTuple):
    """The result is a smooth gate of z."""

    z: Token
    shape: eager_curves.Shape


class Larger(NamedTuple):
    """The result is the larger of two, or the smaller."""

    first: Token
    second: Token
    largest: bool


class _MisfitError(Exception):
    """Tensors of a network do not go with one of another shape."""


class _UnknownError(Exception):
    """A result depends on the image by other ways than those tried."""


SHAPED_ALIKE = re.compile("(zeros|ones|full|empty|rand|randn)_like|new_.*|size|dim|shape")
"""Calls that read no numbers."""


def mark(result: Any) -> None:
    """Write down on tensors that they depend on the image."""
    for item in tree_leaves(result):
        if isinstance(item, Tensor):
            item._of_image = True  # type: ignore[attr-defined]


def is_marked(item: object) -> bool:
    """Does it depend on the image?"""
    return isinstance(item, Tensor) and hasattr(item, "_of_image")


def made_by(name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Made | None:
    """What an element-wise call of something that depends on the image makes; None for all others."""
    if name not in _KINKED and name not in _SMOOTH:
        return None
    tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
    marked = [item for item in tensors if is_marked(item)]
    if not marked or (name in ("max", "min") and len(tensors) != 2):
        return None
    own = str(getattr(func, "__name__", ""))
    in_place = (
        name in _IN_PLACE or (own.endswith("_") and not own.endswith("__")) or bool(kwargs.get("inplace"))
    )
    in_place = in_place or (name == "threshold" and len(args) > 3 and bool(args[3]))
    if name in _INDEXING and not _is_mask(args[1]):
        return None
    args, kwargs = _mapped(
        lambda item: Token(item, item._version) if isinstance(item, Tensor) else item,
        (tuple(args), dict(kwargs)),
    )
    made = Made(name, func, args, kwargs, in_place)
    # Sums of maps that are lines gate nothing, and would keep all maps of a network in memory.
    return made if made.kinked or made.curved or len(made.roots) == 1 else None


def _is_mask(index: Any) -> bool:
    (only, *others) = index if isinstance(index, tuple | list) and index else (index,)
    return isinstance(only, Tensor) and only.dtype == torch.bool and not others


def note(result: Tensor, made: Made) -> None:
    """Write down on a tensor how it was made; a call that gives back what it was given makes nothing."""
    if any(token.tensor is result and token.version == result._version for token in made.tokens):
        return
    made.kinked = made.kinked and not made.gate
    notes = getattr(result, "_made", None)
    if notes is None:
        notes = result._made = {}  # type: ignore[attr-defined]
    notes[result._version] = made


def find(made: Made, result: Tensor) -> Slopes | Bounds | Larger | Curve | None:
    """The gate that `result` is, the value that `made` made; None if it is none."""
    if not result.is_floating_point():
        return None
    return (_find_kinked(made, result) if made.kinked else None) or (
        _curve(made, result) if made.curved else None
    )


def _find_kinked(made: Made, result: Tensor) -> Slopes | Bounds | Larger | None:
    candidates = [token for token in _ancestors(made) if token.tensor.shape == result.shape]
    if made.name in CLAMPING:
        for z in _ancestors(made, through=CLAMPING):
            bounds = _bounds(made, z) if z.tensor.shape == result.shape else None
            if bounds is not None:
                return bounds
    for z in candidates:
        slopes = _slopes(made, z)
        if slopes is not None:
            return slopes
    if made.name in _INDEXING:
        return None
    floating = [
        token for token in made.tokens if token.tensor.is_floating_point() and is_marked(token.tensor)
    ]
    return _larger(made, *floating) if len(set(floating)) == len(floating) == 2 else None


def ordinary(made: Made, z: Token, at: Tensor) -> Callable[[Tensor], Tensor]:
    """The ordinary pullback of a value to z, taken at another place; it is a function of each number by itself."""
    with torch.enable_grad():
        leaf = at.detach().clone().requires_grad_()
        value = _repeat(made, {z: leaf}, _KINKED | _SMOOTH)
        (slope,) = torch.autograd.grad(value, leaf, torch.ones_like(value))
    return lambda cotangent: cotangent * slope


def _made(token: Token) -> Made | None:
    found: Made | None = getattr(token.tensor, "_made", {}).get(token.version)
    return found


def _is_flat(token: Token) -> bool:
    """Does it depend on the image by steps alone? Then no cotangent passes there."""
    origin = _made(token)
    return origin is not None and (
        origin.name in COMPARING or all(_is_flat(one) for one in origin.tokens if is_marked(one.tensor))
    )


def _ancestors(made: Made, through: frozenset[str] | None = None) -> Iterator[Token]:
    """What depends on the image and may be the gate's input, the nearest first."""
    seen, layer = set(), made.tokens
    for _ in range(REACH):
        layer = [token for token in dict.fromkeys(layer) if token not in seen and is_marked(token.tensor)]
        seen.update(layer)
        yield from (token for token in layer if token.tensor.is_floating_point() and not _is_flat(token))
        earlier = [found for token in layer if (found := _made(token)) is not None]
        layer = [token for one in earlier if through is None or one.name in through for token in one.tokens]


def _repeat(made: Made, given: Mapping[Token, Tensor], through: frozenset[str] = frozenset()) -> Tensor:
    """The value with other tensors in place of some.

    `through`: calls whose results are looked behind though they are gates already.
    """

    def read(token: Token, passing: bool) -> Tensor:
        if token in given:
            return given[token]
        origin = _made(token)
        if origin is None:
            if is_marked(token.tensor) or token.tensor._version != token.version:
                raise _UnknownError
            return token.tensor
        if origin.gate and not passing and origin.name not in through:
            raise _UnknownError
        passing = passing or origin.name in COMPARING
        return origin.run(lambda one: read(one, passing))

    passing = made.name in COMPARING
    return made.run(lambda one: read(one, passing))


def _slopes(made: Made, z: Token) -> Slopes | None:
    sides = _first_few(lambda like: _sides(made, z, _numbers(like(z.tensor))))
    if sides is None:
        return None
    above, below = sides
    if float(above.max() - above.min()) > 1e-5 or _close(above.abs(), below.abs()):
        return None
    is_one = float(below.max() - below.min()) <= 1e-5
    return Slopes(z, float(above.flatten()[0]), float(below.flatten()[0]) if is_one else below)


def _sides(made: Made, z: Token, numbers: Tensor) -> tuple[Tensor, Tensor] | None:
    """What z is multiplied by above 0 and below, the same near 0 and far from it; None if it is no such product."""
    sides = []
    for sign in (1, -1):
        usual, *others = (_ratio(made, z, sign * size * numbers) for size in SIZES)
        if usual is None or not all(_close(usual, other) for other in others):
            return None
        sides.append(usual)
    above, below = sides
    return above, below


def _ratio(made: Made, z: Token, probe: Tensor) -> Tensor | None:
    answer = _fitting(made, {z: probe}, probe.shape)
    return None if answer is None else answer / probe


def _close(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def _bounds(made: Made, z: Token) -> Bounds | None:
    numbers = _numbers(z.tensor)
    ends = [_try(made, {z: sign * torch.full_like(numbers, 1e30)}, CLAMPING) for sign in (-1, 1)]
    if any(end is None or end.shape != numbers.shape or float(end.max() - end.min()) != 0 for end in ends):
        return None
    low, high = (float(end.flatten()[0]) for end in ends)  # type: ignore[union-attr]
    if not (-1e30 < low < high < 1e30 and low <= 0 <= high):
        return None
    probe = numbers * (high - low) * torch.where(numbers.cos() > 0, 0.5, -0.5)
    answer = _try(made, {z: probe}, CLAMPING)
    return (
        Bounds(z, low, high) if answer is not None and torch.equal(answer, probe.clamp(low, high)) else None
    )


def _curve(made: Made, result: Tensor) -> Curve | None:
    """A gate that is no straight line; others that it is written with, a ReLU6 of a Hardswish, are its parts."""
    for z in _ancestors(made):
        if z.tensor.shape != result.shape or not result.ndim:
            continue
        try:
            shape = _shape(made, z, eager_curves.short(result.ndim)[None])
        except _MisfitError:  # it is made with other tensors, too
            try:
                shape = _shape(made, z, eager_curves.probes(result.shape))
            except _MisfitError:
                continue
        if shape is not None:
            return Curve(z, shape)
    return None


def _shape(made: Made, z: Token, probes: Tensor) -> eager_curves.Shape | None:
    """What it gives for the probes in place of z, as a gate; None if it is none, or not made of z alone."""
    answers = []
    for probe in probes:
        answer = _fitting(made, {z: probe}, probe.shape, _KINKED | _SMOOTH)
        if answer is None:
            return None
        answers.append(answer)
    return eager_curves.shape_of(probes, torch.stack(answers))


def _larger(made: Made, first: Token, second: Token) -> Larger | None:
    choices = _first_few(lambda like: _choices(made, first, second, like))
    return Larger(first, second, *choices) if choices is not None and len(choices) == 1 else None


def _choices(made: Made, first: Token, second: Token, like: Callable[[Tensor], Tensor]) -> list[bool] | None:
    """Is it the larger (True) or the smaller (False) of two tensors like these? It may be both; None: neither."""
    functions = {True: torch.maximum, False: torch.minimum}
    for seed, size in enumerate(SIZES):
        one, other = (
            _signed(size * _numbers(like(token.tensor), seed + 9 * place), place)
            for place, token in enumerate((first, second))
        )
        answer = _fitting(made, {first: one, second: other}, (one + other).shape)
        functions = {
            largest: function
            for largest, function in functions.items()
            if answer is not None and torch.equal(answer, function(one, other))
        }
        if not functions:
            return None
    return list(functions)


def _first_few(attempt: Callable[[Callable[[Tensor], Tensor]], T | None]) -> T | None:
    """Try with four numbers in place of each tensor, which tells most values that are no gate; then with all."""
    try:
        if attempt(_few) is None:
            return None
    except _MisfitError:  # it is made with other tensors, too
        pass
    try:
        return attempt(lambda tensor: tensor)
    except _MisfitError:
        return None


def _few(tensor: Tensor) -> Tensor:
    """A tensor of as many dimensions with four numbers."""
    return tensor.new_empty([4, *[1] * (tensor.ndim - 1)] if tensor.ndim else [])


def _fitting(
    made: Made, given: Mapping[Token, Tensor], shape: torch.Size, through: frozenset[str] = frozenset()
) -> Tensor | None:
    """The value with other tensors in place of some, of this shape; None if it depends on still others.

    Raises:
        _MisfitError: it has another shape, or cannot be made of these.
    """
    try:
        answer = _try(made, given, through)
    except RuntimeError as error:
        raise _MisfitError from error
    if answer is not None and answer.shape != shape:
        raise _MisfitError
    return answer


def _try(made: Made, given: Mapping[Token, Tensor], through: frozenset[str] = frozenset()) -> Tensor | None:
    with torch.no_grad():
        try:
            return _repeat(made, given, through)
        except _UnknownError:
            return None


def _numbers(like: Tensor, seed: int = 0) -> Tensor:
    """Numbers above 0, from a tenth to some ten."""
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.exp(4.6 * torch.rand(like.shape, generator=generator, dtype=like.dtype))


def _signed(numbers: Tensor, seed: int) -> Tensor:
    """Half of them below 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(numbers.shape, generator=generator) < 0.5, -numbers, numbers)


def _leaves(tree: Any) -> list[Any]:
    return tree_leaves(tree, is_leaf=lambda item: isinstance(item, Token))


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    return tree_map(function, tree, is_leaf=lambda item: isinstance(item, Token))
