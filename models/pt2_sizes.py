"""For which pictures an exported graph was made: the few expressions of a .pt2 file that count, worked out by hand.

torch.export writes sizes as `Mul(Integer(4), Symbol('s1', positive=True, integer=True))` and conditions as
`(L['x'].size()[2] % 4) == 0`; torch's deserialiser evaluates both as Python. Here both are parsed, and what is
not integers, sizes, comparisons and the functions below is refused. Nothing is evaluated but by this file.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import torch

from sptrace.models.pt2_archive import DTYPES, Json

Number = int | float
# Longer ones do not occur; the parser's memory and stack grow with them.
_LONGEST = 4000
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "Integer": lambda number: number,
    "Add": lambda *terms: sum(terms),
    "Mul": lambda *factors: math.prod(factors),
    **dict.fromkeys(("FloorDiv", "CleanDiv"), operator.floordiv),
    **dict.fromkeys(("Mod", "PythonMod"), operator.mod),
    **dict.fromkeys(("Max", "max", "torch.sym_max"), max),
    **dict.fromkeys(("Min", "min", "torch.sym_min"), min),
    "torch.sym_float": float,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
    "math.trunc": math.trunc,
    "round": round,
    "abs": abs,
}
_OPERATORS: dict[type[ast.AST], Callable[..., Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True)
class Pictures:
    """What an exported graph says about its input.

    Arguments:
        dtype: of the pixels.
        sizes: a number where the size is fixed, else an expression.
        example: the sizes with which it was exported; None where the file does not say.
        ranges: by symbol the smallest and the largest size; None: there is no bound.
        conditions: what the network decided by the sizes when it was exported, so what must hold.
    """

    dtype: torch.dtype
    sizes: tuple[int | str, ...]
    example: tuple[int | None, ...]
    ranges: dict[str, tuple[int | None, int | None]]
    conditions: tuple[str, ...]

    def broken(self, shape: Sequence[int]) -> str | None:
        """The first condition that pictures of a shape do not meet; None if the graph is right for them.

        Raises:
            ValueError: a condition is written in another language than this file's.
        """
        symbols: dict[str, int] = {}
        for size, wanted in zip(shape, self.sizes, strict=True):
            if isinstance(wanted, int):
                if size != wanted:
                    return f"a size of {wanted}"
            elif not _solve(wanted, size, symbols):
                return f"a size of {wanted}"
        for name, number in symbols.items():
            smallest, largest = self.ranges.get(name, (None, None))
            # torch.export takes two for any number, and says so.
            if smallest is not None and smallest > 2 and number < smallest:
                return f"at least {smallest}"
            if largest is not None and number > largest:
                return f"at most {largest}"
        return next((text for text in self.conditions if not evaluate(text, shape, symbols)), None)


def read(program: Json, name: str) -> Pictures:
    """Read what a serialised ExportedProgram says about its input of that name.

    Raises:
        Exception: in many ways, if the file was made or damaged by hand.
    """
    meta = program["graph_module"]["graph"]["tensor_values"][name]
    sizes: list[int | str] = []
    example: list[int | None] = []
    for size in meta["sizes"]:
        if "as_int" in size:
            sizes.append(_whole(size["as_int"]))
            example.append(_whole(size["as_int"]))
        else:
            text, hint = size["as_expr"]["expr_str"], size["as_expr"].get("hint")
            if not isinstance(text, str):
                raise TypeError("a size that is no text")
            sizes.append(text)
            example.append(None if hint is None else _whole(hint["as_int"]))
    ranges = {
        symbol: (_bound(bounds["min_val"]), _bound(bounds["max_val"]))
        for symbol, bounds in program["range_constraints"].items()
    }
    return Pictures(
        DTYPES[meta["dtype"]], tuple(sizes), tuple(example), ranges, tuple(program.get("guards_code") or ())
    )


def evaluate(text: str, shape: Sequence[int], symbols: dict[str, int]) -> Number:
    """Work out an expression for pictures of a shape.

    Raises:
        ValueError: it is none of sizes.
        KeyError: a symbol in it has no value.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ValueError(f"{ascii(text)[:80]} is no expression of sizes")
    try:
        return _value(_parsed(text), shape, symbols)
    except (ArithmeticError, IndexError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"{ascii(text)[:80]} is no expression of sizes") from error


@lru_cache(maxsize=256)
def _parsed(text: str) -> ast.expr:
    return ast.parse(text.strip(), mode="eval").body


def _value(node: ast.expr, shape: Sequence[int], symbols: dict[str, int]) -> Number:
    def value(inner: ast.expr) -> Number:
        return _value(inner, shape, symbols)

    match node:
        case ast.Constant(value=int() | float() as number) if type(number) is not bool:
            return number
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=assumed):
            if not all(isinstance(assumption.value, ast.Constant) for assumption in assumed):
                raise TypeError("no symbol")
            return symbols[name]
        case ast.Call(func=function, args=arguments, keywords=[]) if _dotted(function) in _FUNCTIONS:
            return _FUNCTIONS[_dotted(function)](*map(value, arguments))
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=given, attr="size"), args=[]), slice=index
        ):
            _only_input(given)
            place = value(index)
            if not isinstance(place, int):
                raise TypeError("a place that is no integer")
            return shape[place]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(left), value(right))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](value(operand))
        case ast.BoolOp(op=op, values=values):
            return (all if isinstance(op, ast.And) else any)(map(value, values))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(type(op) in _OPERATORS for op in ops):
            pairs = pairwise([value(left), *map(value, others)])
            return all(_OPERATORS[type(op)](*pair) for op, pair in zip(ops, pairs, strict=True))
    raise TypeError("no expression of sizes")


def _dotted(node: ast.expr) -> str:
    """The name of a function: max, math.floor."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=ast.Name(id=module), attr=name):
            return f"{module}.{name}"
    return ""


def _only_input(node: ast.expr) -> None:
    """Accept L['x'] and L['args'][0], which both stand for the one input."""
    while isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        node = node.value
    if not (isinstance(node, ast.Name) and node.id == "L"):
        raise TypeError("no input")


def _solve(expression: str, size: int, symbols: dict[str, int]) -> bool:
    """Find the symbol of an expression that gives a size, where it has no value yet; tell if there is one.

    Raises:
        ValueError: the expression has several unknown symbols, or is none.
    """
    try:
        return evaluate(expression, (), symbols) == size
    except KeyError as error:
        name = str(error.args[0])
    for number in (size, *range(size)):  # most often the size is the symbol itself
        try:
            if evaluate(expression, (), {**symbols, name: number}) == size:
                symbols[name] = number
                return True
        except KeyError as error:
            raise ValueError(f"{ascii(expression)[:80]} has several unknown sizes") from error
    return False


def _integer(number: Json) -> int:
    if type(number) is not int:
        raise TypeError(f"{ascii(number)[:40]} is no integer")
    return number


def _whole(number: Json) -> int:
    if _integer(number) < 0:
        raise ValueError(f"{number} is no size")
    return int(number)


def _bound(number: Json) -> int | None:
    return None if number is None else _integer(number)
