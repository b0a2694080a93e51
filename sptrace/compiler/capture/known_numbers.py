"""Numbers that do not depend on the image are known while the network is traced.

torch.export sees tensors without data, buffers and parameters among them, so that `if (self.std == 0).any()` is a
branch on data to it. Here every tensor that is made of constants alone has a twin with its numbers, and code that asks
for numbers gets those of the twin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary

from sptrace.compiler.capture.source_lines import running_line
from sptrace.errors import UnsupportedError

LARGEST = 1 << 22
"""How many numbers a twin has at most: nobody decides in Python by more."""

READS = frozenset(
    {
        *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__contains__),
        *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__format__, Tensor.is_nonzero),
        *(torch.is_nonzero, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose),
    }
)
"""What gives numbers to Python."""

SIZED = frozenset(
    {
        *(torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, torch.bincount, Tensor.bincount),
        *(torch.masked_select, Tensor.masked_select, torch.unique, Tensor.unique),
        *(torch.unique_consecutive, Tensor.unique_consecutive),
        *(torch.repeat_interleave, Tensor.repeat_interleave),
    }
)
"""What gives tensors whose size depends on numbers."""

_INDEXING = frozenset({Tensor.__getitem__, Tensor.__setitem__})
_PYTHON_READS: tuple[Any, ...] = (Tensor.numpy, Tensor.__array__)
_DESCRIBING = frozenset(
    {
        *("device", "dim", "dtype", "is_conj", "is_inference", "is_leaf", "is_mkldnn", "is_neg", "is_nested"),
        *(
            "is_quantized",
            "is_sparse",
            "_is_view",
            "layout",
            "ndim",
            "numel",
            "requires_grad",
            "shape",
            "size",
        ),
        *("storage_offset", "stride", "untyped_storage"),
    }
)
"""Methods and attributes of a tensor that give neither numbers nor tensors: nine in ten calls while tracing."""


class KnownNumbers(TorchFunctionMode):
    """Within `following`, while the network is traced, numbers are known that depend on its constants alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._numbers = dict(_named(network))
        self._twins = WeakIdKeyDictionary()
        self._drawn = WeakIdKeyDictionary()
        self._spoiled: set[int] = set()
        """Memory that has been overwritten with what depends on the image."""

    @contextmanager
    def following(self) -> Iterator[None]:
        """Within this context calls of the network are followed."""
        hook = self._network.register_forward_pre_hook(self._begin, prepend=True)
        try:
            with self:
                yield
        finally:
            hook.remove()

    def _begin(self, network: nn.Module, inputs: object) -> None:
        """Tensors without data stand for parameters and buffers by now, under their names."""
        for name, tensor in _named(network):
            if name in self._numbers:
                self._twins[tensor] = self._numbers[name]

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if _name(func) in _DESCRIBING:
            return func(*args, **kwargs)
        if func in _INDEXING:
            args = (args[0], self._plain_index(args[1]), *args[2:])
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in given):
            return func(*args, **kwargs)  # under torch.vmap nobody has numbers of his own
        twins = [self._twin(tensor) for tensor in given]
        drawn = any(tensor in self._drawn for tensor in given)
        known = None
        if not drawn and all(twin is not None for twin in twins):
            known, drawn = self._run(func, args, kwargs)
        if known is not None and (func in READS or func in SIZED):
            return known[0]
        if func is torch._assert and twins:
            return None
        if func in READS:
            if func is Tensor.__format__ and not drawn:
                return "?"  # for a message: it is not known here
            _refuse_read(func, drawn)
        versions = [tensor._version for tensor in given]
        answer = func(*args, **kwargs)
        if known is not None:
            self._pair(answer, known[0])
            return answer
        for number, (tensor, version, twin) in enumerate(zip(given, versions, twins, strict=True)):
            if twin is not None and (tensor._version != version or (number == 0 and _writes(func, kwargs))):
                self._spoiled.add(_memory(twin))
        if drawn:
            for leaf in tree_leaves(answer):
                if isinstance(leaf, Tensor):
                    self._drawn[leaf] = True
        return answer

    def _twin(self, tensor: Tensor) -> Tensor | None:
        twin: Tensor | None = self._twins.get(tensor)  # type: ignore[no-untyped-call]
        if twin is None and _has_numbers(tensor):
            twin = tensor
        return None if twin is None or _memory(twin) in self._spoiled else twin

    def _plain_index(self, index: Any) -> Any:
        """An index without known masks, and with known numbers as such."""
        plain: list[Any] = []
        for item in index if isinstance(index, tuple) else (index,):
            twin = self._twin(item) if isinstance(item, Tensor) else None
            if twin is None or twin.dtype == torch.uint8 or (twin.ndim == 0 and twin.dtype == torch.bool):
                plain.append(item)
            elif twin.dtype == torch.bool:
                with _disable_current_modes():
                    plain.extend(twin.nonzero(as_tuple=True))
            else:
                plain.append(twin.item() if twin.ndim == 0 else item)
        return tuple(plain) if isinstance(index, tuple) or len(plain) != 1 else plain[0]

    def _run(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any] | None, bool]:
        """What the function gives for the twins, in a tuple, or None; and does it draw random numbers?"""
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool) for leaf in leaves):
            return None, False
        if any(isinstance(leaf, torch.Generator) for leaf in leaves):
            return None, True
        twin_args, twin_kwargs = tree_map(
            lambda leaf: self._twin(leaf) if isinstance(leaf, Tensor) else leaf, (tuple(args), dict(kwargs))
        )
        with _disable_current_modes(), torch.no_grad():
            state = torch.get_rng_state()
            try:
                answer = func(*twin_args, **twin_kwargs)
                if torch.equal(torch.get_rng_state(), state):
                    return (answer,), False
                # Some draw from a range that holds one number alone.
                drawn = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, answer)
                answer = func(*twin_args, **twin_kwargs)
            except Exception:  # whatever it is, the network's own call meets it
                return None, False
            torch.set_rng_state(state)
        return ((answer,), False) if _same(drawn, answer) else (None, True)

    def _pair(self, answer: Any, known: Any) -> None:
        pairs = zip(tree_leaves(answer), tree_leaves(known), strict=False)
        for tensor, twin in pairs:
            if isinstance(tensor, Tensor) and isinstance(twin, Tensor) and twin.numel() <= LARGEST:
                self._twins[tensor] = twin


def _refuse_read(func: Any, drawn: bool) -> None:
    """Refuse what no trace can give, where the reason is better known here."""
    if drawn:
        raise UnsupportedError(
            f"the network decides by a random number ({running_line()}), so it answers differently every time: "
            "let it decide without"
        )
    if func in _PYTHON_READS:
        raise UnsupportedError(
            f"the network hands a tensor that depends on the image to NumPy ({running_line()}), where nothing can "
            "follow it: compute with PyTorch"
        )


def _name(func: Any) -> str:
    """Of an attribute the attribute's: its getter is called `__get__`, as all are."""
    name: str = getattr(func, "__name__", "")
    return func.__self__.__name__ if name == "__get__" else name


def _named(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def _has_numbers(tensor: Tensor) -> bool:
    """Is it an ordinary tensor, which lies in an attribute or a closure?"""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and not torch._is_functional_tensor(tensor)
    )


def _same(first: Any, second: Any) -> bool:
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def _memory(twin: Tensor) -> int:
    address: int = twin.untyped_storage()._cdata
    return address


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Does a call change its first tensor? In-place ops have an underscore at the end."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return (
        in_place
        or name.startswith(("__i", "__set"))
        or kwargs.get("out") is not None
        or bool(kwargs.get("inplace"))
    )
