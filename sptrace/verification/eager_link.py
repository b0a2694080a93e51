"""What a network's softmax or sigmoid at its end was applied to: found by watching its calls.

Like `sptrace.verification.eager` this shares no code with the compiler.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sptrace.errors import VerificationError
from sptrace.verification.eager_products import REARRANGING

REMEMBERED = 200
"""How many of the last calls: a network's end is short."""

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

FORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(1),
    "log_softmax": lambda logits: logits.log_softmax(1),
    "sigmoid": torch.sigmoid,
    "logsigmoid": F.logsigmoid,
}

MIXING = {"linear", "conv2d"}
"""Of the rearranging calls those that do more with numbers than to move them."""

Call = tuple[str, Any, Tensor, Sequence[Any], Mapping[str, Any], Any]


class WatchedEnd(TorchFunctionMode):
    """Remembers the last softmaxes and sigmoids, and what only rearranges them or takes a logarithm."""

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
        name = called.strip("_")
        watched = name in LINKS or name in ("log", "exp") or (name in REARRANGING and name not in MIXING)
        source = args[0] if args else kwargs.get("input")
        if not watched or not isinstance(source, Tensor):
            return func(*args, **kwargs)
        in_place = called.endswith("_") and not called.endswith("__")
        before = source.clone() if in_place else source
        result = func(*args, **kwargs)
        if result is not before:  # dropout in eval mode answers what it was given
            rest = {key: given for key, given in kwargs.items() if key != "input"}
            self.calls.append((name, func, before, args[1:], rest, result))
        return result

    def before(self, output: Tensor, link: str, pictures: int) -> Tensor:
        """The logits that the network's link makes its output of, a row for every picture.

        Raises:
            VerificationError: the network does not end in that link.
        """
        steps: list[Call] = []
        asked = output
        while True:
            call = next((one for one in reversed(self.calls) if one[-1] is asked), None)
            if call is None:
                raise VerificationError(_unlike(link, "calls nothing of the kind at its end"))
            steps.append(call)
            if call[0] in LINKS:
                break
            asked = call[2]
        name, _, logits, args, kwargs, _ = steps.pop()
        logits = -logits if name == "softmin" else logits
        found = _again(logits, steps).reshape(pictures, -1)
        if found.shape[1] == 1 and "softm" in name:  # one of two classes is read: p_1 = s(z_1 - z_0)
            dim = kwargs.get("dim", args[0] if args else None)
            found = found - _again(logits.flip(1 if dim is None else dim), steps).reshape(pictures, -1)
        with torch.no_grad():
            given, wanted = FORMS[link](found.detach()), output.detach().reshape(pictures, -1)
            error = float(((given - wanted).abs() / wanted.abs().clamp(min=1)).max())
        if not error <= 1e-5:
            raise VerificationError(
                _unlike(link, f"{link} of its logits is {error:.1e} away from its output")
            )
        return found


def _again(logits: Tensor, steps: Sequence[Call]) -> Tensor:
    """The logits through the calls that follow the link, from the last of `steps` to the first."""
    for name, func, _, args, kwargs, _ in reversed(steps):
        if name not in ("log", "exp"):
            logits = func(logits, *args, **kwargs)
    return logits


def _unlike(link: str, reason: str) -> str:
    return (
        f"the {link} at the network's end was taken off, but in eager PyTorch the network {reason}: nothing was "
        "saved; keep it with keep_link=True (--keep-link)"
    )
