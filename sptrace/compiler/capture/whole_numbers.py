"""Where Python takes nothing but numbers, a multiple of the number of pictures is one all the same.

`int(len(windows) / (H * W / 49))`, `round`, `math.floor` and keys of dictionaries and `lru_cache`s would make
torch.export fix the batch size, or fail. Not all networks' code bears it that `int` is another class, so this is for a
second try.
"""

from __future__ import annotations

import builtins
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any
from unittest.mock import patch

import torch
from sympy import Integer  # type: ignore[import-untyped]
from torch import nn

from sptrace.compiler.capture.source_lines import is_own

_PROBES = (2, 3, 5, 7)
_ROUNDING = ("__trunc__", "__floor__", "__ceil__", "__round__")


@contextmanager
def whole_numbers(network: nn.Module) -> Iterator[None]:
    """Within this context the network's modules have an `int` that gives symbolic sizes, and these can be keys."""
    pictures: list[torch.SymInt] = []

    def begin(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        pictures[:] = [inputs[0].shape[0]]

    def whole(number: Any) -> torch.SymInt | None:
        times = _times(number) if pictures else None
        return None if times is None else pictures[0] * times

    def rounding(usual: Any) -> Any:
        def rounded(number: Any, *digits: Any) -> Any:
            exact = whole(number)
            return usual(number, *digits) if exact is None else exact

        return rounded

    class Whole(type):
        """Of an `int` that is the other one to whoever asks."""

        def __call__(cls, *given: Any, **options: Any) -> Any:
            exact = whole(given[0]) if given else None
            return builtins.int(*given, **options) if exact is None else exact

        def __instancecheck__(cls, other: object) -> bool:
            return isinstance(other, builtins.int)

        def __subclasscheck__(cls, other: type) -> bool:
            return issubclass(other, builtins.int)

        def __eq__(cls, other: object) -> bool:
            return other is cls or other is builtins.int

        def __hash__(cls) -> int:
            return hash(builtins.int)

    number: Any = Whole("int", (builtins.int,), {})
    symbolic: Any = torch.SymFloat
    with ExitStack() as stack:
        for name in _ROUNDING:
            stack.enter_context(patch.object(symbolic, name, rounding(getattr(symbolic, name))))
        stack.enter_context(patch.object(torch.SymInt, "__hash__", lambda size: hash(str(size.node.expr))))
        for namespace in _namespaces(network):
            if "int" not in namespace:
                namespace["int"] = number
                stack.callback(namespace.pop, "int")
        hook = network.register_forward_pre_hook(begin, prepend=True)
        stack.callback(hook.remove)
        yield


def _times(number: Any) -> int | None:
    """How many times the number of pictures it is; None if that is no whole number, or it is something else."""
    if not isinstance(number, torch.SymFloat | torch.SymInt):
        return None
    symbols = number.node.expr.free_symbols
    if len(symbols) != 1:
        return None
    (symbol,) = symbols
    ratios = {float(number.node.expr.xreplace({symbol: Integer(each)})) / each for each in _PROBES}
    (ratio, *others) = ratios
    return int(ratio) if not others and ratio == math.floor(ratio) else None


def _namespaces(network: nn.Module) -> list[dict[str, Any]]:
    """Of the modules that define the network's classes and functions, of those beside, and what they import from."""
    parts = [thing for part in network.modules() for thing in (type(part), *vars(part).values())]
    names = _modules_of(parts)
    packages = {name.rpartition(".")[0] for name in names} - {""}
    names |= {name for name in sys.modules if name.rpartition(".")[0] in packages}
    names |= _modules_of(thing for name in names for thing in vars(sys.modules[name]).values())
    return [vars(sys.modules[name]) for name in names]


def _modules_of(things: Iterable[object]) -> set[str]:
    """The names of the modules, neither PyTorch's nor ours, that define those of the things that are code."""
    names = {thing.__module__ for thing in list(things) if isinstance(thing, type | FunctionType)}
    return {
        name
        for name in names & sys.modules.keys()
        if is_own(getattr(sys.modules[name], "__file__", None) or "<")
    }
