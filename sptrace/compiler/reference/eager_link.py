"""What a network's softmax or sigmoid at its end was applied to: found by watching its calls.

A softmax that is called is taken at its word. What is written out is found by its numbers: among the tensors that the
network made last, that of which the output is the softmax or sigmoid. Like `reference.eager` this shares no
code with the compiler.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from sptrace.compiler.reference.eager_products import REARRANGING
from sptrace.errors import VerificationError

REMEMBERED = 200
"""How many of the last calls: a network's end is short."""

LARGEST = 2**17
"""Numbers of a tensor that is remembered: outputs have fewer."""

LINKS = {
    "softmax": "softmax",
    "special_softmax": "softmax",
    "softmin": "softmax",
    "log_softmax": "log_softmax",
    "special_log_softmax": "log_softmax",
    "sigmoid": "sigmoid",
    "special_expit": "sigmoid",
    "expit": "sigmoid",
    "log_sigmoid": "logsigmoid",
    "logsigmoid": "logsigmoid",
}

FORMS: Mapping[str, Callable[[Tensor, int], Tensor]] = {
    "softmax": lambda logits, dim: logits.softmax(dim),
    "log_softmax": lambda logits, dim: logits.log_softmax(dim),
    "sigmoid": lambda logits, dim: torch.sigmoid(logits),
    "logsigmoid": lambda logits, dim: F.logsigmoid(logits),
}

ORDERING = {"flip", "roll", "index_select", "gather", "take_along_dim"}
JOINING = {"cat", "concat", "concatenate", "stack", "hstack"}
MIXING = {"linear", "conv2d"}
"""Of the rearranging calls those that do more with numbers than to move them."""

PERCENT = 100.0
TOLERANCE = 1e-5


class Call(NamedTuple):
    """One call, its first argument as it was before."""

    name: str
    func: Any
    source: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    result: Any

    def of(self, source: Any) -> Any:
        """The same call of something else."""
        return self.func(source, *self.args, **self.kwargs)


class Logits(NamedTuple):
    """What a link is applied to; of a softmax also the same with the classes in reverse, which of two is the other."""

    logits: Tensor
    reverse: Tensor | None

    def map(self, function: Callable[[Tensor], Tensor]) -> "Logits":
        """Both of them rearranged."""
        return Logits(function(self.logits), None if self.reverse is None else function(self.reverse))


class WatchedEnd(TorchFunctionMode):
    """Remembers the last calls of tensors that may be outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: deque[Call] = deque(maxlen=REMEMBERED)

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        called = str(getattr(func, "__name__", "")).partition(".")[0]
        source = args[0] if args else kwargs.get("input", kwargs.get("tensors"))
        tensors = source if isinstance(source, list | tuple) else [source]
        if not all(isinstance(one, Tensor) and one.numel() <= LARGEST for one in tensors):
            return func(*args, **kwargs)
        in_place = isinstance(source, Tensor) and called.endswith("_") and not called.endswith("__")
        before = source.clone() if in_place and isinstance(source, Tensor) else source
        result = func(*args, **kwargs)
        changed = result is not before  # dropout answers what it was given
        if changed and isinstance(result, Tensor | tuple | list):
            rest = {key: given for key, given in kwargs.items() if key not in ("input", "tensors")}
            self.calls.append(Call(called.strip("_"), func, before, args[1:], rest, result))
        return result

    def before(self, output: Tensor, link: str, pictures: int) -> Tensor:
        """The logits that the network's link makes its output of, a row for every picture.

        Raises:
            VerificationError: the network does not end in that link.
        """
        found = self._logits(output)
        if found is None:
            raise VerificationError(_unlike(link, "calls nothing of the kind at its end"))
        logits, reverse = found.map(lambda one: one.reshape(pictures, -1))
        if logits.shape[1] == 1 and reverse is not None:  # one of two classes is read: p_1 = s(z_1 - z_0)
            logits = logits - reverse
        error = _distance(link, logits, output.reshape(pictures, -1))
        if not error <= TOLERANCE:
            raise VerificationError(
                _unlike(link, f"{link} of its logits is {error:.1e} away from its output")
            )
        return logits

    def _logits(self, asked: Tensor) -> Logits | None:
        """What a tensor is the softmax or sigmoid of, or the logarithm of one, or a rearrangement."""
        call = next((one for one in reversed(self.calls) if _gave(one, asked)), None)
        if call is None:
            return None
        if call.name in LINKS:
            logits = -call.source if call.name == "softmin" else call.source
            given = call.kwargs.get("dim", call.args[0] if call.args and "sigmoid" not in call.name else None)
            return self._unshifted(logits, 1 if given is None else given, LINKS[call.name])
        if call.name in ("log", "exp"):
            inner = self._logits(call.source)
            if inner is not None:
                return inner
        if call.name in REARRANGING - MIXING | ORDERING and isinstance(call.result, Tensor):
            inner = self._logits(call.source)
            return None if inner is None else inner.map(call.of)
        if call.name in ("unbind", "chunk", "split") and isinstance(call.result, tuple | list):
            inner = self._logits(call.source)
            at = next(index for index, piece in enumerate(call.result) if piece is asked)
            return None if inner is None else inner.map(lambda one: call.of(one)[at])
        if call.name in JOINING:
            parts = [self._logits(part) for part in call.source]
            found = [part.logits for part in parts if part is not None and part.reverse is None]
            return Logits(call.of(found), None) if len(found) == len(parts) else None
        return self._by_its_numbers(call, asked)

    def _by_its_numbers(self, made: Call, asked: Tensor) -> Logits | None:
        """Of what the tensor is a link: what was made before is tried, the latest first.

        Other numbers are put in its place, neither large nor small, and the calls from it on are repeated. So it does
        not matter how sure the network is of these pictures.
        """
        for candidate in self._candidates(made, asked):
            numbers = torch.linspace(-3, 2, candidate.numel(), dtype=candidate.dtype).reshape(candidate.shape)
            given = self._repeated(candidate, numbers, made, asked)
            if given is None:
                continue
            for name, dim, factor in _readings(candidate):
                if _distance(name, factor * numbers, given, dim) <= TOLERANCE:
                    return self._unshifted(candidate if factor == 1 else factor * candidate, dim, name)
        return None

    def _repeated(self, tensor: Tensor, numbers: Tensor, made: Call, asked: Tensor) -> Tensor | None:
        """What `asked` becomes of these numbers in the tensor's place; None if it does not read that."""
        others = {id(tensor): numbers}
        calls = self._up_to(made)
        begun = next((at + 1 for at, one in enumerate(calls) if _gave(one, tensor)), 0)
        with torch.no_grad():
            for call in calls[begun:]:
                given = (call.source, call.args, call.kwargs)
                if not any(id(one) in others for one in tree_leaves(given)):
                    continue
                source, args, kwargs = tree_map(partial(_other, others), given)
                result = call.func(tree_map(_copy, source), *args, **kwargs)  # the call may work in place
                for before, now in zip(tree_leaves(call.result), tree_leaves(result), strict=True):
                    if isinstance(before, Tensor):
                        others[id(before)] = now
        return others.get(id(asked))

    def _up_to(self, made: Call) -> list[Call]:
        calls = list(self.calls)
        return calls[: next(at for at, one in enumerate(calls) if one is made) + 1]

    def _candidates(self, made: Call, asked: Tensor) -> Iterator[Tensor]:
        """What is as large, from what the call that made it was given back to the first call."""
        seen: set[int] = set()
        for call in reversed(self._up_to(made)):
            for one in (*(() if call is made else (call.result,)), *call.args, call.source):
                if isinstance(one, Tensor) and one.shape == asked.shape and id(one) not in seen:
                    seen.add(id(one))
                    yield one

    def _unshifted(self, logits: Tensor, dim: int, name: str) -> Logits:
        """Of a softmax: before its largest, or the logarithm of its sum, was taken from all logits."""
        if "sigmoid" in name:
            return Logits(logits, None)
        while True:
            call = next((one for one in reversed(self.calls) if one.result is logits), None)
            if call is None or not isinstance(call.source, Tensor) or call.source.shape != logits.shape:
                break
            z = call.source.detach()
            shift = z - logits.detach()
            shifts = (z.amax(dim, True), z.amax(), z.logsumexp(dim, True))
            if call.name not in ("sub", "subtract", "log_softmax") or not any(
                bool(((shift - one).abs() <= TOLERANCE * z.abs().max()).all()) for one in shifts
            ):
                break
            logits = call.source
        return Logits(logits, logits.flip(dim))


def _gave(call: Call, asked: Tensor) -> bool:
    """Did the call give it, alone or among others?"""
    several = isinstance(call.result, tuple | list)
    return any(piece is asked for piece in call.result) if several else call.result is asked


def _other(others: Mapping[int, Tensor], given: Any) -> Any:
    return others.get(id(given), given) if isinstance(given, Tensor) else given


def _copy(given: Any) -> Any:
    return given.clone() if isinstance(given, Tensor) else given


def _readings(tensor: Tensor) -> Iterator[tuple[str, int, int]]:
    """As what logits a tensor may be tried: name of the link, dimension, and what to multiply it by."""
    for name in FORMS:
        if "sigmoid" in name:
            yield from ((name, 1, factor) for factor in (1, -1, 2, -2))  # s(2 z) is (1 + tanh z) / 2
        else:
            yield from ((name, dim, 1) for dim in range(1, tensor.ndim) if tensor.shape[dim] > 1)


def _distance(link: str, logits: Tensor, wanted: Tensor, dim: int = 1) -> float:
    """The largest difference of the probabilities; percents are taken for what they mean."""
    with torch.no_grad():
        given = FORMS[link](logits, dim)
        if "log" in link:
            given, wanted = given.exp(), wanted.exp()
        return min(float((given - wanted / scale).abs().max()) for scale in (1.0, PERCENT))


def _unlike(link: str, reason: str) -> str:
    return (
        f"the {link} at the network's end was taken off, but in eager PyTorch the network {reason}: nothing was "
        "saved; keep it with keep_link=True (--keep-link)"
    )
