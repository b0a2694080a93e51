"""After a compile, whether it succeeds or fails, the network answers as before and has kept nothing of it."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_networks import classifier, images
from torch import Tensor, nn

import sptrace
from sptrace.compiler.capture.unchanged import Snapshot, unchanged

GLOBAL: dict[str, Tensor] = {}
late: Tensor


class Cached(nn.Module):
    """Multiplies the image by a grid that it keeps from its first call on."""

    of_class: Tensor | None = None
    grids: dict[int, Tensor] = {}  # noqa: RUF012  # that is the mistake

    def __init__(self, grid: Callable[[Any, int], Tensor], branches: bool = False) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.own: dict[int, Tensor] = {}
        self.register_buffer("stale", torch.zeros(1))
        self.grid = grid
        self.branches = branches

    def forward(self, image: Tensor) -> Tensor:
        image = image * self.grid(self, image.shape[-1])
        if self.branches and image.sum() > 0:
            image = image + 1
        return self.inner(image)

    @functools.lru_cache  # noqa: B019  # that is the mistake
    def remembered(self, width: int) -> Tensor:
        return _made(width)

    @functools.cached_property
    def property(self) -> Tensor:
        return _made(16)


def _made(width: int) -> Tensor:
    return torch.linspace(0, 1, width)


def _in_class(self: Cached, width: int) -> Tensor:
    if Cached.of_class is None:
        Cached.of_class = _made(width)
    return Cached.of_class


def _in_attribute(self: Any, width: int) -> Tensor:
    if not hasattr(self, "kept"):
        self.kept = _made(width)
    kept: Tensor = self.kept
    return kept


def _in_new_buffer(self: Any, width: int) -> Tensor:
    if not hasattr(self, "added"):
        self.register_buffer("added", _made(width), persistent=False)
    added: Tensor = self.added
    return added


def _in_old_buffer(self: Any, width: int) -> Tensor:
    if self.stale.shape[0] != width:
        self.stale = _made(width)
    stale: Tensor = self.stale
    return stale


def _in_late_global(self: Cached, width: int) -> Tensor:
    global late
    try:
        return late
    except NameError:
        late = _made(width)
        return late


def _in_closure() -> Callable[[Cached, int], Tensor]:
    kept: list[Tensor] = []

    def grid(self: Cached, width: int) -> Tensor:
        if not kept:
            kept.append(_made(width))
        return kept[0]

    return grid


def _in_cell() -> Callable[[Cached, int], Tensor]:
    kept = None

    def grid(self: Cached, width: int) -> Tensor:
        nonlocal kept
        if kept is None:
            kept = _made(width)
        return kept

    return grid


def _in_default(self: Cached, width: int, kept: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return kept.setdefault(width, _made(width))


@functools.lru_cache(maxsize=2)
def _remembered(width: int) -> Tensor:
    return _made(width)


PLACES: dict[str, Callable[[Any, int], Tensor]] = {
    "class attribute": _in_class,
    "attribute": _in_attribute,
    "new buffer": _in_new_buffer,
    "buffer replaced": _in_old_buffer,
    "dict of the object": lambda self, width: self.own.setdefault(width, _made(width)),
    "dict of the class": lambda self, width: self.grids.setdefault(width, _made(width)),
    "global": lambda self, width: GLOBAL.setdefault("grid", _made(width)),
    "global that was not there": _in_late_global,
    "closure": _in_closure(),
    "cell": _in_cell(),
    "default argument": _in_default,
    "lru_cache": lambda self, width: _remembered(width),
    "lru_cache of a method": lambda self, width: self.remembered(width),
    "cached_property": lambda self, width: self.property,
}


@pytest.mark.parametrize("branches", [False, True], ids=["succeeds", "fails"])
@pytest.mark.parametrize("place", PLACES)
def test_what_forward_keeps(place: str, branches: bool) -> None:
    network = Cached(PLACES[place], branches).eval()
    before = set(vars(network)), set(network.state_dict()), set(vars(Cached))
    if branches:
        with pytest.raises(sptrace.UnsupportedError, match="branches on the values"):
            sptrace.compile(network, images(1), program="gradient")
    else:
        sptrace.compile(network, images(1), program="gradient")
    assert (set(vars(network)), set(network.state_dict()), set(vars(Cached))) == before
    assert not network.own
    assert not network.grids
    assert "late" not in globals()
    with torch.no_grad():
        image = images(2) * _made(16)
        wanted = network.inner(image + 1 if branches and image.sum() > 0 else image)
        given = network(images(2))
    assert type(given) is Tensor
    assert torch.equal(given, wanted)
    # And leave nothing for the next of these tests.
    Cached.of_class = None
    Cached.grids.clear()
    GLOBAL.clear()
    globals().pop("late", None)


@pytest.mark.parametrize("fails", [False, True])
def test_modes_gradients_hooks_and_random_numbers(fails: bool) -> None:
    network = classifier().requires_grad_(True)
    network.get_submodule("head.1").requires_grad_(False)
    with torch.enable_grad():
        network(images(1)).sum().backward()
    calls: list[int] = []
    network.register_forward_hook(lambda *_: calls.append(1))
    network.get_submodule("block.0").register_full_backward_hook(lambda *_: calls.append(2))
    parameters = dict(network.named_parameters())
    before = {name: (data.clone(), data.grad, data.requires_grad) for name, data in parameters.items()}
    kind, attributes = type(network), set(vars(network))
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    options: dict[str, Any] = {"labels": ["one"]} if fails else {}
    refused = pytest.raises(sptrace.SptraceError) if fails else nullcontext()
    with pytest.warns(sptrace.SptraceWarning), refused:
        sptrace.compile(network, images(1), program="gradient", **options)
    assert torch.equal(torch.rand(1), wanted)
    assert type(network) is kind
    assert set(vars(network)) == attributes
    for name, data in network.named_parameters():
        numbers, gradient, wants = before[name]
        assert data is parameters[name]
        assert torch.equal(data, numbers)
        assert data.grad is gradient
        assert data.requires_grad == wants
    calls.clear()
    with torch.enable_grad():
        network(images(1).requires_grad_()).sum().backward()
    assert calls == [1, 2]


class Settled(nn.Module):
    """Sets what belongs to the process, gives its weights other numbers, and writes into them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, image: Tensor) -> Tensor:
        np.random.seed(0)
        random.seed(0)
        torch.set_float32_matmul_precision("high")
        torch.set_num_threads(2)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_math_sdp(False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.head.bias.data.clamp_(0, 0.1)
        self.head.weight.data = nn.functional.normalize(self.head.weight.data)
        return self.head(image.mean((2, 3)))


def test_settings_of_the_process_and_numbers_of_parameters() -> None:
    network = Settled()
    numbers = {name: data.clone() for name, data in network.state_dict().items()}

    def settings() -> list[Any]:
        return [
            np.random.get_state()[1].tolist(),  # type: ignore[index]
            random.getstate(),
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
            torch.backends.cudnn.benchmark,
            torch.backends.cuda.math_sdp_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        ]

    before = settings()
    with unchanged(network):
        network(images(1))
        assert all(given != wanted for given, wanted in zip(settings(), before, strict=True))
    assert settings() == before
    assert all(torch.equal(data, numbers[name]) for name, data in network.state_dict().items())


class Clipped(nn.Module):
    """Writes into its weights and a buffer whenever it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classifier()
        self.register_buffer("scale", torch.tensor([3.0, 0.2, 1.0]).reshape(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.clamp_(-0.1, 0.1)
        self.scale.clamp_(0.5, 1.5)
        logits: Tensor = self.inner(image * self.scale)
        return logits


def test_weights_that_forward_writes_to(tmp_path: Path) -> None:
    """They are as before, and the artifact computes what the network does."""
    network = Clipped().eval()
    numbers = {name: data.clone() for name, data in network.state_dict().items()}
    sptrace.compile(network, images(1), program="gradient").save(tmp_path / "explainer.onnx")
    assert all(torch.equal(data, numbers[name]) for name, data in network.state_dict().items())
    given = sptrace.load(tmp_path / "explainer.onnx").explain(images(2, seed=5).numpy(), 1)
    leaf = images(2, seed=5).double().requires_grad_()
    logits = network.double()(leaf)
    np.testing.assert_allclose(given.logits, logits.detach(), rtol=1e-4, atol=1e-6)
    wanted = torch.autograd.grad(logits[:, 1].sum(), leaf)[0]
    assert np.abs(given.attribution - wanted.numpy()).max() <= 1e-5 * float(wanted.abs().max())


class Keyed(dict[Any, Any]):
    """A dictionary that is asked in its own way, as transformers has one."""

    def __setitem__(self, key: Any, item: Any) -> None:
        super().__setitem__(str(key), item)

    def get(self, key: Any) -> Any:  # type: ignore[override]
        return super().get(str(key)) or {}

    def items(self) -> Any:
        raise RuntimeError("not to be listed")

    def __len__(self) -> int:
        return 0


class Silent(list[Any]):
    """A list that gives its items to nobody."""

    def __iter__(self) -> Any:
        raise RuntimeError("not to be read")


class Pretender:
    """A proxy: it answers to every name, and says that it is a dictionary."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return dict

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name}: out of context")


@dataclass(frozen=True)
class Frozen:
    """A thing with slots that cannot be written to, but for the brutal."""

    __slots__ = ("grid",)
    grid: Any


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keyed, self.silent, self.pretender, self.frozen = Keyed(), Silent(), Pretender(), Frozen(None)
        self.ordered = OrderedDict(a=1, b=2)
        self.keyed["first"] = 1

    def forward(self, x: Tensor) -> Tensor:
        self.keyed["grid"] = self.keyed.grid = torch.ones_like(x)
        self.silent.append(torch.ones_like(x))
        object.__setattr__(self.frozen, "grid", torch.ones_like(x))
        self.ordered.move_to_end("a")
        self.ordered["c"] = torch.ones_like(x)
        return (x * self.keyed.grid).mean((2, 3))


@pytest.mark.parametrize("compiles", [True, False])
def test_containers_with_manners_of_their_own(compiles: bool) -> None:
    network = Odd().eval()
    if compiles:
        sptrace.compile(network, images(1), program="gradient")
    else:
        with unchanged(network):
            network(images(1))
    assert dict.__len__(network.keyed) == 1
    assert "grid" not in vars(network.keyed)
    assert len(network.silent) == 0
    assert network.frozen.grid is None
    assert list(network.ordered.items()) == [("a", 1), ("b", 2)]


def test_an_order_alone() -> None:
    """As of a cache that throws the oldest away."""
    network = nn.Identity()
    network.kept = OrderedDict(a=1, b=2)
    with unchanged(network):
        network.kept.move_to_end("a")
    assert list(network.kept) == ["a", "b"]


def test_what_cannot_be_looked_at_leaves_no_old_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the next compile would put weights back to what they were before more training."""
    network = classifier()

    right, kept = Snapshot._keep_tensor, []

    def unreadable(self: Snapshot, tensor: Tensor) -> None:
        right(self, tensor)
        kept.append(tensor)
        if len(kept) == 3:
            raise RuntimeError("not to be read")

    with monkeypatch.context() as patch:
        patch.setattr(Snapshot, "_keep_tensor", unreadable)
        with pytest.raises(RuntimeError, match="not to be read"), unchanged(network):
            pass
    assert any(isinstance(tensor, nn.Parameter) for tensor in kept)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2)
    numbers = [parameter.clone() for parameter in network.parameters()]
    with unchanged(network):
        pass
    assert all(map(torch.equal, network.parameters(), numbers))


def test_a_network_that_is_trained_on(tmp_path: Path) -> None:
    """What is saved is what was compiled and verified."""
    network = classifier()
    program = sptrace.compile(network, images(1), program="gradient")
    before = program.onnx_model
    with torch.no_grad():
        for data in [*network.parameters(), *network.buffers()]:
            data.mul_(2)
    assert program.onnx_model == before


def test_numbers_of_buffers() -> None:
    network = nn.BatchNorm2d(3)
    numbers = {name: data.clone() for name, data in network.state_dict().items()}
    with unchanged(network):
        network(images(2))
        assert not torch.equal(network.running_mean, numbers["running_mean"])
    assert all(torch.equal(data, numbers[name]) for name, data in network.state_dict().items())


def test_a_sparse_tensor_within_reach() -> None:
    """It has no memory of its own to look at, and none is changed."""
    network = classifier()
    network.neighbours = torch.eye(3).to_sparse()
    with unchanged(network):
        network.neighbours.requires_grad_()
    assert not network.neighbours.requires_grad
    sptrace.compile(network, images(1))
