"""Networks that take their image, or answer, in other ways; wrappers; and those that cannot be run at all."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.explained import assert_gradient
from helpers.small_networks import classifier, images
from helpers.tails import Tail, plain
from torch import Tensor, nn

import sptrace


@dataclass
class Scores:
    scores: Tensor
    states: Any = None


Named = namedtuple("Named", "scores classes")  # as people write it

ANSWERS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda y: (y,),
    "list": lambda y: [y],
    "tuple with None": lambda y: (y, None),
    "dict": lambda y: {"out": y},
    "ordered dict": lambda y: OrderedDict(out=y, name="x"),
    "data class": Scores,
    "data class with classes": lambda y: Scores(y, [y.argmax(1)]),
    "named tuple": lambda y: Named(y, y.argmax(1)),
    "object": lambda y: SimpleNamespace(scores=y, loss=None),
    "logits among others": lambda y: SimpleNamespace(logits=y, states=(y, y)),
    "nested": lambda y: ((y,), 1.5, "text"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers(answer: str) -> None:
    assert_gradient(Tail(ANSWERS[answer]), plain)


def test_several_answers() -> None:
    with pytest.raises(sptrace.UnsupportedError) as error:
        sptrace.compile(Tail(lambda y: Scores(y, {"more": y.exp()})), images(1))
    assert str(error.value) == (
        "the network returns 2 tensors (.scores [N, 4] torch.float32, .states['more'] [N, 4] torch.float32): "
        "wrap it so that it returns the logits alone"
    )


class ByKeyword(Tail):
    def forward(self, *, pixel_values: Tensor, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return self.logits(pixel_values)


class ByOptionalKeyword(Tail):
    def forward(self, *, pixel_values: Tensor | None = None, labels: Tensor | None = None) -> Tensor:  # type: ignore[override]
        assert pixel_values is not None
        return self.logits(pixel_values)


class ByAnything(Tail):
    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.logits(*args, **kwargs)


@pytest.mark.parametrize("kind", [ByKeyword, ByOptionalKeyword, ByAnything])
def test_inputs(kind: type[Tail]) -> None:
    assert_gradient(kind(), plain)


def _compiled_in_place() -> nn.Module:
    network = Tail()
    network.compile()
    network.conv.compile()
    return network


def _compiled_forward() -> nn.Module:
    network = Tail()
    network.forward = torch.compile(network.forward)  # type: ignore[method-assign]
    return network


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "torch.compile": lambda: torch.compile(Tail()),  # type: ignore[dict-item, return-value]
    "DataParallel, its mode forgotten": lambda: nn.DataParallel(Tail()),
    "both": lambda: nn.DataParallel(torch.compile(Tail())),  # type: ignore[arg-type]
    "torch.compile inside": lambda: nn.Sequential(torch.compile(Tail())).eval(),  # type: ignore[arg-type]
    "DataParallel inside": lambda: nn.Sequential(nn.DataParallel(Tail())).eval(),
    "compiled in place": _compiled_in_place,
    "compiled forward": _compiled_forward,
}


@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers(wrapped: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert_gradient(WRAPPED[wrapped](), plain)
    assert capfd.readouterr() == ("", "")


class Looking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.DataParallel(Tail())
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        return self.inner(image) + self.inner.module(image)


def test_a_network_that_looks_through_its_wrapper() -> None:
    assert_gradient(Looking(), lambda image: 2 * plain(image))


@pytest.mark.parametrize(
    "made",
    [
        lambda: torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()).eval()),
        lambda: torch.jit.freeze(torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten()).eval())),
        lambda: torch.jit.trace(Tail(), images(2)),
        lambda: nn.Sequential(torch.jit.trace(Tail(), images(2))).eval(),
    ],
)
def test_torchscript(made: Callable[[], nn.Module]) -> None:
    with pytest.raises(
        sptrace.UnsupportedError, match=r"is TorchScript .*compile the network it was made from"
    ):
        sptrace.compile(made(), images(1))


def test_a_network_without_numbers() -> None:
    network = nn.Sequential(nn.LazyConv2d(4, 16), nn.Flatten()).eval()
    with pytest.raises(sptrace.SptraceError, match=r"'0.weight' has no numbers yet: run the network once"):
        sptrace.compile(network, images(1))


class Raises(nn.Module):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("bad\nvery"), "ValueError: bad"),
        (KeyError("missing"), "KeyError: 'missing'"),
        (AssertionError(), "AssertionError"),
        (StopIteration(), "StopIteration"),
        (NotImplementedError(), "NotImplementedError"),
    ],
)
def test_errors_of_the_network(error: Exception, words: str) -> None:
    with pytest.raises(sptrace.UnsupportedError) as raised:
        sptrace.compile(Raises(error), images(1))
    assert str(raised.value) == f"the network cannot run the example: {words}"
    assert raised.value.__cause__ is error


def test_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise ZeroDivisionError("division")

    monkeypatch.setattr("sptrace.compiler.compile.compose", fails)
    with pytest.raises(
        sptrace.SptraceError, match=r"this is an error of sptrace: ZeroDivisionError: division$"
    ):
        sptrace.compile(classifier(), images(1))
