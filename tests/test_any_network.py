"""Whatever a network does, `sptrace.compile` serves it rightly or says in one line what is in the way."""

from __future__ import annotations

import functools
import math
import random
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.explained import assert_gradient
from helpers.small_networks import images
from helpers.tails import Tail
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import sptrace

Logits = Callable[[Tensor], Tensor]


class Called(Tail):
    """`Tail` whose forward is a function of itself and the image."""

    def __init__(self, call: Callable[[Any, Tensor], Any], **members: Any) -> None:
        super().__init__()
        self.call = call
        for name, member in members.items():
            if isinstance(member, Tensor):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)
        self.eval()

    def forward(self, image: Tensor) -> Any:
        return self.call(self, image)


@dataclass
class Answer:
    logits: Tensor | None = None
    hidden: Tensor | None = None


def hooked(self: Tail, kind: str) -> nn.Module:
    if kind == "kwargs":
        self.conv.register_forward_hook(lambda module, args, kwargs, output: output * 2, with_kwargs=True)
    elif kind == "before":
        self.conv.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    else:
        self.register_forward_hook(lambda module, args, output: {"logits": output * 2})
    return self


def counting(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    self.average.mul_(0.9).add_(x.mean((0, 2, 3)).detach() * 0.1)
    return self.logits(x)


def assigned(self: Any, x: Tensor) -> Tensor:
    self.average = 0.9 * self.average + 0.1 * x.mean((0, 2, 3)).detach()
    return self.logits(x)


def without_gradient(self: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        scale = self.logits(x)
    return self.logits(x) * scale


def without_autocast(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.logits(x)


def formatted(self: Any, x: Tensor) -> Tensor:
    y = self.logits(x)
    self.said = f"{x.shape} {x.mean():.3f} {y.max().item():.2f}"
    return y


def checked(self: Any, x: Tensor) -> Tensor:
    assert x.ndim == 4
    assert x.shape[1:] == (3, 16, 16)
    torch._assert(x.shape[2] == 16, "size")
    torch._assert(x.isfinite().all(), "numbers")
    return self.logits(x)


def with_coordinates(self: Any, x: Tensor) -> Tensor:
    columns = (torch.arange(x.shape[3]).float() / 8 - 1).type_as(x)  # which is the very tensor
    return self.logits(x * columns.abs())


def masked(self: Any, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[y < 0] *= 0.3
    above = y > 0.1
    y[above] = torch.log(y[above]) - y[above]  # of numbers below it would be NaN
    y[:, :2][y[:, :2] < 0.2] += 1
    return self.fc(torch.tanh(y).mean((2, 3)))


def masked_rows(self: Any, x: Tensor) -> Tensor:
    rows = self.conv(x).flatten(2).mT
    answer = x.new_zeros(x.shape[0], rows.shape[1], 4)
    for sign in (-1, 1):
        chosen = sign * rows[..., 0] > 0
        answer[chosen] = self.fc(rows[chosen]) * rows[..., 1][chosen].unsqueeze(-1)
    return answer.sin().mean(1)


def windows_by_fractions(self: Any, x: Tensor) -> Tensor:
    """As the official Swin has it."""
    y = self.conv(x[..., :14, :14])
    n, channels, high, wide = y.shape
    windows = (
        y.view(n, channels, high // 4, 4, wide // 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(-1, 16, channels)
    )
    windows = torch.softmax(windows @ windows.mT, -1) @ windows
    count = int(windows.shape[0] / (high * wide / 4 / 4))
    assert count == math.floor(len(windows) / 9.0) == round(windows.shape[0] / 9)
    return self.fc(windows.view(count, -1, channels).mean(1))


@functools.lru_cache
def of_batch(count: int, size: int) -> Tensor:
    return torch.arange(size).float().expand(count, 1, 1, size) / size


def cached(self: Any, x: Tensor) -> Tensor:
    key = (x.shape[0], "scale")
    if key not in self.cache:
        self.cache[key] = x.new_full((x.shape[0], 1, 1, 1), 0.5)
    return self.logits(x * of_batch(x.shape[0], x.shape[3]) + self.cache[key])


class Overridden(Tail):
    def __call__(self, image: Tensor) -> Tensor:
        answer: Tensor = super().__call__(image)
        return answer


def layer_from_a_parametrization() -> nn.Module:
    network = Tail()
    parametrizations.weight_norm(network.conv)
    parametrizations.spectral_norm(network.fc)
    return network.eval()


def pruned() -> nn.Module:
    network = Tail()
    prune.l1_unstructured(network.conv, "weight", 0.5)
    return network


SERVED: dict[str, Callable[[], nn.Module]] = {
    "counters and averages that nobody reads": lambda: Called(
        counting, calls=torch.zeros(()), average=torch.zeros(3)
    ),
    "an average that is assigned": lambda: Called(assigned, average=torch.zeros(3)),
    "a part without gradients": lambda: Called(without_gradient),
    "detach": lambda: Called(lambda self, x: self.logits(x) * self.logits(x).detach()),
    "data": lambda: Called(lambda self, x: self.logits(x) * self.logits(x).data),
    "autocast off": lambda: Called(without_autocast),
    "checkpoint": lambda: Called(
        lambda self, x: self.fc(checkpoint(self.conv, x, use_reentrant=False).tanh().mean((2, 3)))
    ),
    "what it says": lambda: Called(formatted),
    "what it checks": lambda: Called(checked),
    "is traced?": lambda: Called(
        lambda self, x: self.logits(x) * (2 if torch.compiler.is_compiling() else 1)
    ),
    "is exported?": lambda: Called(
        lambda self, x: 1 / 0 if torch.compiler.is_exporting() else self.logits(x)
    ),
    "is scripted?": lambda: Called(
        lambda self, x: self.logits(x) * (2 if torch.jit.is_scripting() or torch.jit.is_tracing() else 1)
    ),
    "channels last": lambda: Called(
        lambda self, x: self.logits(x.contiguous(memory_format=torch.channels_last))
    ),
    "__call__": Overridden,
    "hook with keywords": lambda: hooked(Tail(), "kwargs"),
    "hook before": lambda: hooked(Tail(), "before"),
    "hook around": lambda: hooked(Tail(), "around"),
    "parametrizations": layer_from_a_parametrization,
    "pruned": pruned,
    "data class with None": lambda: Called(lambda self, x: Answer(None, self.logits(x))),
    "the same tensor twice": lambda: Called(lambda self, x: [self.logits(x)] * 2),
    "nested": lambda: Called(lambda self, x: OrderedDict(a={"b": (self.logits(x), None)})),
    "[N, 4, 1, 1]": lambda: Called(lambda self, x: self.logits(x)[:, :, None, None]),
    "float64 at the end": lambda: Called(lambda self, x: self.logits(x).double()),
    "coordinates": lambda: Called(with_coordinates),
    "parts under a mask": lambda: Called(masked),
    "rows under a mask": lambda: Called(masked_rows),
    "windows counted by fractions": lambda: Called(windows_by_fractions),
    "caches for each number of pictures": lambda: Called(cached, cache={}),
    "pruned in forward": lambda: Called(pruned_in_forward, mask=(torch.arange(8) % 2).float()),
    "the largest of a buffer": lambda: Called(
        lambda self, x: self.logits(x) * max(self.scale) * min(self.scale.tolist()),
        scale=torch.tensor([0.5, 3.0]),
    ),
    "comparing the number of pictures": lambda: Called(
        lambda self, x: self.logits(x) if x.shape[0] > 1 else self.logits(x)[:1]
    ),
    "a keyword": lambda: Called(
        lambda self, x: F.normalize(self.logits(input=x) if False else self.logits(x))
    ),
}


def flat(answer: Any) -> Tensor:
    while not isinstance(answer, Tensor):
        parts = answer if isinstance(answer, tuple | list) else None
        parts = list(answer.values()) if isinstance(answer, dict) else parts or list(vars(answer).values())
        answer = next(part for part in parts if part is not None)
    return answer.flatten(1)


@pytest.mark.parametrize("name", SERVED)
def test_served(name: str) -> None:
    network = SERVED[name]()
    twin = SERVED[name]().double()
    state = {key: data.clone() for key, data in network.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sptrace.SptraceWarning)
        assert_gradient(network, lambda x: flat(twin(x)))
    assert all(torch.equal(data, state[key]) for key, data in network.state_dict().items())


def used_count(self: Any, x: Tensor) -> Tensor:
    self.calls += 1
    return self.logits(x) * self.calls


def used_average(self: Any, x: Tensor) -> Tensor:
    self.average.mul_(0.9).add_(x.mean((0, 2, 3)).detach() * 0.1)
    return self.logits(x - self.average[:, None, None])


def gradient_inside(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self.logits(leaf).sum(), leaf)
    return self.logits(x + gradient)


def backward_inside(self: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        self.logits(leaf).sum().backward()
    return self.logits(x + leaf.grad)


def in_half(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return self.logits(x).float()


def one_picture(self: Any, x: Tensor) -> Tensor:
    assert x.shape[0] == 1, "one picture"
    return self.logits(x)


def even(self: Any, x: Tensor) -> Tensor:
    assert x.shape[0] % 2 == 0
    return self.logits(x)


def never_filled(self: Any, x: Tensor) -> Tensor:
    y = self.logits(x)
    z = torch.empty_like(y)
    z[:, :2] = y[:, 2:]
    return y + z


def drawn(self: Any, x: Tensor) -> Tensor:
    torch.manual_seed(0)
    return self.logits(x + torch.randn_like(x[:1]))


def unknown_error(self: Any, x: Tensor) -> Tensor:
    raise KeyError("a\nb")


def under_gradients(self: Any, x: Tensor) -> Tensor:
    if x.requires_grad:
        raise ValueError("no gradients here")
    return self.logits(x)


def branched(self: Any, x: Tensor) -> Tensor:
    answer: Tensor = torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * 3, (x,))
    return self.logits(answer)


def pruned_in_forward(self: Any, x: Tensor) -> Tensor:
    self.fc.weight.data.mul_(self.mask)
    return self.logits(x)


def vectorised(self: Any, x: Tensor) -> Tensor:
    return self.fc(torch.vmap(lambda y: y.sin().mean((1, 2)))(self.conv(x)))


def summed_under_mask(self: Any, x: Tensor) -> Tensor:
    y = self.logits(x)
    return y + y[y > 0].sum()


CHANCE = "answers the same picture differently every time"
REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a counter": (
        lambda: Called(used_count, calls=torch.zeros(())),
        CHANCE + r" \(its 'calls' is changed by each call\)",
    ),
    "an average": (
        lambda: Called(used_average, average=torch.zeros(3)),
        CHANCE + r" \(its 'average' is changed",
    ),
    "autograd.grad": (lambda: Called(gradient_inside), "takes a gradient inside of forward"),
    "backward": (lambda: Called(backward_inside), "takes a gradient inside of forward"),
    "autocast": (lambda: Called(in_half), "switches autocast on: compile it in float32"),
    "half": (lambda: Called(lambda self, x: self.logits(x.half().float())), "computes in torch.float16"),
    "one picture": (lambda: Called(one_picture), "fixes the batch size .*one picture, but not two"),
    "an even number": (lambda: Called(even), "fixes the batch size"),
    "noise": (lambda: Called(lambda self, x: self.logits(x + torch.randn_like(x))), CHANCE),
    "fixed noise": (lambda: Called(drawn), CHANCE + r" \(random numbers: randn_like"),
    "Python's noise": (lambda: Called(lambda self, x: self.logits(x) * random.random()), CHANCE),
    "the time": (lambda: Called(lambda self, x: self.logits(x) * (time.perf_counter() % 1)), CHANCE),
    "a generator": (
        lambda: Called(
            lambda self, x: self.logits(x + torch.rand(16, generator=torch.Generator().manual_seed(0)))
        ),
        "computes with a .*a random generator for instance",
    ),
    "dropout": (lambda: Called(lambda self, x: F.dropout(self.logits(x))), f"dropout is active|{CHANCE}"),
    "memory": (lambda: Called(never_filled), "reads memory that it has never filled"),
    "requires_grad": (
        lambda: Called(lambda self, x: self.logits(x) * (2 if x.requires_grad else 1)),
        "something else where gradients are computed",
    ),
    "an error under gradients": (
        lambda: Called(under_gradients),
        "not where gradients are computed.*ValueError",
    ),
    "the class of a tensor": (
        lambda: Called(lambda self, x: self.logits(x) * (1 if type(x) is Tensor else 2)),
        "something else while it is traced",
    ),
    "an error": (lambda: Called(unknown_error), "cannot run the example: KeyError"),
    "cond": (lambda: Called(branched), r"decides by the values of a tensor \(torch.cond\)"),
    "no classes": (lambda: Called(lambda self, x: self.logits(x)[:, :0]), r"returns \[N, 0\]"),
    "nothing": (lambda: Called(lambda self, x: None), "returns 0 tensors"),
    "one number": (lambda: Called(lambda self, x: self.logits(x).sum()), r"returns \[\] torch.float32"),
    "complex": (lambda: Called(lambda self, x: self.logits(x) * 1j), "torch.complex64"),
    "a sum under a mask": (lambda: Called(summed_under_mask), "depend on the values of a tensor"),
    "vmap": (lambda: Called(vectorised), "maps a function with torch.vmap"),
    "classes": (lambda: Called(lambda self, x: self.logits(x).argmax(1)), r"returns \[N\] torch.int64"),
    "detached": (lambda: Called(lambda self, x: self.logits(x.detach())), "no cotangent reaches the image"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).eval(), "has no numbers yet"),
    "meta": (lambda: Tail().to("meta"), r"is on meta: call .cpu\(\)"),
    "training": (lambda: Tail().train(), "train mode"),
    "double": (lambda: Tail().double(), r"torch.float64: call .float\(\)"),
    "a picture of its own": (lambda: Called(lambda self, x: x), r"returns \[N, 3, 16, 16\]"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    make, wanted = REFUSED[name]
    with pytest.raises(sptrace.SptraceError, match=wanted) as error:
        sptrace.compile(make(), images(1))
    message = str(error.value)
    assert "\n" not in message
    assert "error of sptrace" not in message
