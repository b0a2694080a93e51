"""Is what torch.export has traced what the network computes?"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from sptrace.compiler.capture.answers import logits_of
from sptrace.compiler.capture.harness import reason
from sptrace.compiler.capture.source_lines import is_own, line_of
from sptrace.compiler.graph.facts import facts
from sptrace.errors import SptraceError, UnsupportedError

LATER = 0.1
"""Seconds after which a network is asked once more: one that reads the clock answers much the same at once."""

TOLERANCE = 1e-3
"""Of the largest logit: far above rounding."""

DRAWS = frozenset(
    {
        *(
            "bernoulli",
            "cauchy",
            "exponential",
            "geometric",
            "log_normal",
            "multinomial",
            "normal",
            "poisson",
        ),
        *(
            "rand",
            "rand_like",
            "randint",
            "randint_like",
            "randn",
            "randn_like",
            "random",
            "randperm",
            "uniform",
        ),
    }
)
"""Ops that draw numbers, whatever mode the network is in."""

_ASKED: tuple[tuple[Any, str], ...] = (
    (torch.compiler, "is_compiling"),
    (torch.compiler, "is_exporting"),
    (torch._dynamo, "is_compiling"),
    (torch._utils, "_is_compiling"),
)


class UnfaithfulError(UnsupportedError):
    """What is traced is something else than the network computes."""


@contextmanager
def asked_whether_traced(pretend: bool) -> Iterator[list[str]]:
    """Within this context it is noted which lines of the network's ask whether they are traced.

    Arguments:
        pretend: tell them that they are not.
    """
    before = [(module, name, getattr(module, name)) for module, name in _ASKED if hasattr(module, name)]
    asked: list[str] = []

    def noting(answer: Callable[[], bool]) -> Callable[[], bool]:
        def ask() -> bool:
            caller = sys._getframe(1)
            if not is_own(caller.f_code.co_filename):
                return answer()
            asked.append(f"{caller.f_code.co_filename}:{caller.f_lineno}")
            return False if pretend else answer()

        return ask

    for module, name, answer in before:
        setattr(module, name, noting(answer))
    try:
        yield asked
    finally:
        for module, name, answer in before:
            setattr(module, name, answer)


def require_faithful(captured: fx.GraphModule, network: nn.Module, pictures: Tensor) -> None:
    """Refuse a network that draws numbers, that gradients change, or that is traced as something else.

    Arguments:
        captured: the network's graph, alone or with a layer's output.
        network: as `capture.harness` runs it.
        pictures: as the network takes them, float32 [N, 3, H, W], two or more.

    Raises:
        UnsupportedError: it draws numbers, keeps count, or depends on whether gradients are computed.
        UnfaithfulError: it computes something else while it is traced.
    """
    before = _versions(network)
    with torch.no_grad():
        wanted = logits_of(network(pictures.clone()))
    explained = _with_gradients(network, pictures)
    with torch.no_grad():
        again = logits_of(network(pictures.clone()))
        traced = captured(pictures.clone())
    given = traced[0] if isinstance(traced, tuple) else traced
    if given.numel() == wanted.numel():
        given = given.reshape(wanted.shape)  # the graph gives rows [N, classes] where a network gives [N]
    if given.isnan().any() and any(_is_unfilled(node) for node in captured.graph.nodes):
        raise UnsupportedError(
            "the network reads memory that it has never filled (torch.empty): fill all of it, or begin with zeros"
        )
    if _same(wanted, again) and not _same(wanted, given):
        time.sleep(LATER)
        with torch.no_grad():
            again = logits_of(network(pictures.clone()))
    drawn = _drawing(captured)
    if not _same(wanted, again) or (drawn is not None and not _same(wanted, given)):
        changed = [name for name, version in _versions(network).items() if before.get(name) != version]
        kept = f"its {changed[0]!r} is changed by each call" if changed else None
        why = drawn or kept or "random numbers, a count of its calls, or the time"
        raise UnsupportedError(
            f"the network answers the same picture differently every time ({why}), which cannot be compiled: "
            "let it answer by the picture alone"
        )
    if not _same(wanted, explained):
        raise UnsupportedError(
            "the network computes something else where gradients are computed (it asks for requires_grad or "
            "is_grad_enabled): explaining it needs gradients, let it compute the same with them"
        )
    if not _same(wanted, given):
        raise UnfaithfulError(
            "the network computes something else while it is traced (it asks torch.compiler.is_compiling or "
            "is_exporting, or for the class of a tensor): let it compute the same in every case"
        )


def _with_gradients(network: nn.Module, pictures: Tensor) -> Tensor:
    leaf = pictures.clone().requires_grad_()
    try:
        with torch.enable_grad():
            return logits_of(network(leaf * 1)).detach()  # a network may work in place
    except SptraceError:
        raise
    except Exception as error:  # whatever the network's own code raises
        if "derivative" in str(error):
            raise  # `compiler.compile` has words for that
        raise UnsupportedError(
            f"the network runs, but not where gradients are computed, as explaining it takes ({line_of(error)}): "
            f"{reason(error)}"
        ) from error


def _versions(network: nn.Module) -> dict[str, tuple[int, int]]:
    """Of every buffer which tensor it is, and how often that has been changed."""
    return {name: (id(data), data._version) for name, data in network.named_buffers()}


def _is_unfilled(node: fx.Node) -> bool:
    """See `capture.exported_graph`."""
    return any(isinstance(number, float) and math.isnan(number) for number in node.args)


def _same(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    scale = first[first.isfinite()].abs().max() if first.isfinite().any() else 1.0
    return torch.allclose(first, second, rtol=0, atol=TOLERANCE * float(scale) + 1e-30, equal_nan=True)


def _drawing(captured: fx.GraphModule) -> str | None:
    """An op that draws numbers, and where."""
    for node in captured.graph.nodes:
        if isinstance(node.target, OpOverload):
            name = node.target._schema.name.removeprefix("aten::").removesuffix("_")
            if name in DRAWS:
                return f"random numbers: {name}, {facts(node).source}"
    return None
