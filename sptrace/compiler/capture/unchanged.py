"""A network stays what it was, whatever runs it: what `forward` leaves behind is taken away again.

Networks keep grids, masks and anchors from one call to the next: in attributes, in class attributes, in dictionaries,
in globals, behind `lru_cache`. Under torch.export those are tensors without data, and would be left in the network.
"""

from __future__ import annotations

import functools
import gc
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# What lies in these packages keeps nothing for one network.
_FOREIGN = frozenset(
    {*sys.stdlib_module_names, "torch", "numpy", "onnx", "onnxruntime", "onnx_ir", "sptrace"}
)
_MISSING = object()
_ATOMS = (str, bytes, int, float, complex, bool, type(None), range, torch.dtype, torch.device, torch.Size)
_LARGEST = 200_000
"""How many objects are looked at: a network is thousands; whatever refers to more is no network."""

_FLAGS: dict[Any, tuple[str, ...]] = {
    torch.backends.cudnn: ("enabled", "benchmark", "deterministic", "allow_tf32"),
    torch.backends.mkldnn: ("enabled",),
    torch.backends.cuda.matmul: ("allow_tf32", "allow_fp16_reduced_precision_reduction"),
}


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


_SETTINGS: list[tuple[Callable[[], Any], Callable[[Any], Any]]] = [
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (random.getstate, random.setstate),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (_deterministic, lambda kept: torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    *(
        (partial(getattr, owner, name), partial(setattr, owner, name))
        for owner, names in _FLAGS.items()
        for name in names
    ),
]
"""What belongs to the whole process, and networks set: how it is read, and put back."""

_HELD: dict[int, Tensor] = {}
"""The numbers of parameters, by their `id`, that some snapshot has: one copy is enough."""

_LruCache = type(functools.lru_cache(lambda: None))


@contextmanager
def unchanged(network: nn.Module) -> Iterator[Snapshot]:
    """Whatever happens to the network within this context is undone when it ends.

    That covers what the network and its code can reach: attributes of modules, their classes and other objects;
    dictionaries, lists and sets; numbers in parameters and buffers, which takes their memory once more; globals and
    closures that its functions name; `lru_cache`s that hold tensors without data; hooks, modes, gradients, the state of
    random numbers, and settings of the process.
    """
    settings = [(put, get()) for get, put in _SETTINGS]
    snapshot = Snapshot(network)
    try:
        yield snapshot
    finally:
        for put, kept in settings:
            put(kept)
        snapshot.restore()


class Snapshot:
    """What a network and its code can reach, as it is now.

    Attributes:
        applies: where it keeps methods `apply` of autograd.Functions: dictionary and key.
    """

    def __init__(self, network: nn.Module) -> None:
        self.applies: list[tuple[dict[Any, Any], Any]] = []
        self._undo: list[Callable[[], None]] = []
        self._held: set[int] = set()
        self._seen: dict[int, object] = {}  # also keeps them alive, so that no number is used twice
        self._todo: deque[object] = deque([network])
        try:
            self._look()
        except BaseException:
            self._let_go()
            raise

    def _look(self) -> None:
        while self._todo and len(self._seen) < _LARGEST:
            found = self._todo.popleft()
            if not isinstance(found, _ATOMS) and id(found) not in self._seen:
                self._seen[id(found)] = found
                self._keep(found)

    def restore(self) -> None:
        """Put everything back to where it was."""
        try:
            for undo in self._undo:
                undo()
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Of the numbers that others may use: the next snapshot takes them anew."""
        while self._held:
            del _HELD[self._held.pop()]

    def _keep(self, found: Any) -> None:
        """Remember a thing that can change, and look at what it refers to.

        It is taken for what its type says, and read as plain Python does: it may pretend to be something else, or have
        a `get`, `__len__` or `__getattr__` of its own.
        """
        kind = type(found)
        if isinstance(found, Tensor):
            self._keep_tensor(found)
        elif issubclass(kind, tuple | frozenset):
            self._todo.extend(_items(found))
            self._keep_more(found)
        elif issubclass(kind, dict):
            self._keep_dict(found)
            self._keep_more(found)
        elif issubclass(kind, list | set | deque):
            self._keep_collection(found)
            self._keep_more(found)
        elif issubclass(kind, type):
            self._keep_class(found)
        elif kind is FunctionType:
            self._keep_function(found)
        elif kind is CellType:
            self._keep_cell(found)
        elif kind is _LruCache:
            self._keep_cache(found)
        elif issubclass(kind, MethodType | partial | property | classmethod | staticmethod):
            self._todo.extend(gc.get_referents(found))
        elif not issubclass(kind, ModuleType | BuiltinFunctionType):
            self._keep_object(found)

    def _keep_more(self, found: object) -> None:
        """What an object of a class made of a collection has beside its items."""
        if type(found) not in _COLLECTIONS:
            self._keep_object(found)

    def _keep_tensor(self, tensor: Tensor) -> None:
        if isinstance(tensor, FakeTensor) or tensor.is_inference() or tensor.is_meta:
            return
        wanted, gradient = tensor.requires_grad, tensor.grad if tensor.is_leaf else None
        data = tensor.data
        stored = torch._C._has_storage(tensor)  # a sparse tensor has none of its own
        numbers = self._numbers(tensor) if stored else None

        def undo() -> None:
            if stored and (tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape):
                tensor.data = data  # a network gave it other numbers
            # Not all kernels that write count versions, batch norm for one.
            if numbers is not None and not torch.equal(tensor.detach(), numbers):
                with torch.no_grad():
                    tensor.detach().copy_(numbers)
            if tensor.is_leaf:
                if tensor.requires_grad != wanted:
                    tensor.requires_grad_(wanted)
                if tensor.grad is not gradient:
                    tensor.grad = gradient

        self._undo.append(undo)

    def _numbers(self, tensor: Tensor) -> Tensor:
        """A copy of a tensor's numbers; of a parameter that of the snapshot around this one, if that has it."""
        if not isinstance(tensor, nn.Parameter):
            return tensor.detach().clone()
        if id(tensor) not in _HELD:
            _HELD[id(tensor)] = tensor.detach().clone()
            self._held.add(id(tensor))
        return _HELD[id(tensor)]

    def _keep_dict(self, found: Any) -> None:
        plain = _plain(found)
        items: dict[Any, Any] = dict(plain.items(found))
        self.applies.extend((found, key) for key, item in items.items() if _is_apply(item))

        def undo() -> None:
            now = list(plain.items(found))
            if len(now) != len(items) or any(
                a is not b
                for pairs in zip(now, items.items(), strict=True)
                for a, b in zip(*pairs, strict=True)
            ):
                plain.clear(found)
                plain.update(found, items)

        self._undo.append(undo)
        self._todo.extend(items.values())

    def _keep_collection(self, found: Any) -> None:
        plain, items = _plain(found), _items(found)

        def undo() -> None:
            now = _items(found)
            if len(now) != len(items) or any(a is not b for a, b in zip(now, items, strict=True)):
                plain.clear(found)
                (plain.update if plain is set else plain.extend)(found, items)

        self._undo.append(undo)
        self._todo.extend(items)

    def _keep_class(self, found: type) -> None:
        self._todo.extend(found.__bases__)
        if _is_foreign(found.__module__):
            return
        items = dict(vars(found))

        def undo() -> None:
            for name in items.keys() | vars(found).keys():
                if name.startswith("__") or vars(found).get(name, _MISSING) is items.get(name, _MISSING):
                    continue
                if name in items:
                    type.__setattr__(found, name, items[name])
                else:
                    type.__delattr__(found, name)

        self._undo.append(undo)
        self._todo.extend(items.values())

    def _keep_function(self, found: FunctionType) -> None:
        self._todo.extend(found.__closure__ or ())
        if _is_foreign(found.__module__):
            return
        self._todo.extend([found.__defaults__, found.__kwdefaults__, vars(found)])
        names = _names(found.__code__)
        for name in names:
            self._keep_name(found.__globals__, name)
            owner = found.__globals__.get(name)
            if isinstance(owner, ModuleType) and not _is_foreign(owner.__name__):
                for inner in names & vars(owner).keys():
                    self._keep_name(vars(owner), inner)

    def _keep_name(self, namespace: dict[str, Any], name: str) -> None:
        item = namespace.get(name, _MISSING)
        if _is_apply(item):
            self.applies.append((namespace, name))

        def undo() -> None:
            if item is _MISSING:
                namespace.pop(name, None)
            elif namespace.get(name, _MISSING) is not item:
                namespace[name] = item

        if _is_apply(item) or not isinstance(item, ModuleType | FunctionType | type | BuiltinFunctionType):
            self._undo.append(undo)
        self._todo.append(item)

    def _keep_cell(self, found: CellType) -> None:
        try:
            item = found.cell_contents
        except ValueError:  # still empty
            return

        def undo() -> None:
            if found.cell_contents is not item:
                found.cell_contents = item

        self._undo.append(undo)
        self._todo.append(item)

    def _keep_cache(self, found: Any) -> None:
        def undo() -> None:
            if _holds_fake(gc.get_referents(found)):
                found.cache_clear()

        self._undo.append(undo)
        self._todo.append(found.__wrapped__)

    def _keep_object(self, found: object) -> None:
        self._todo.append(type(found))
        if isinstance(found, nn.Module) or not _is_foreign(type(found).__module__):
            self._todo.append(_read(found, "__dict__"))
            for kind in type(found).__mro__:
                slots = vars(kind).get("__slots__", ())
                for name in (slots,) if isinstance(slots, str) else slots:
                    self._keep_slot(found, name)

    def _keep_slot(self, found: object, name: str) -> None:
        item = _read(found, name)

        def undo() -> None:
            if _read(found, name) is not item:
                object.__setattr__(found, name, item)

        if item is not _MISSING:
            self._undo.append(undo)
            self._todo.append(item)


_COLLECTIONS: tuple[Any, ...] = (OrderedDict, dict, list, set, deque, tuple, frozenset)


def _plain(found: object) -> Any:
    """Python's own class that a collection is of, whose methods nobody has replaced."""
    return next(kind for kind in _COLLECTIONS if issubclass(type(found), kind))


def _items(found: object) -> list[Any]:
    return list(_plain(found).__iter__(found))


def _read(found: object, name: str) -> Any:
    """An attribute that is there, without asking `__getattr__`."""
    try:
        return object.__getattribute__(found, name)
    except AttributeError:
        return _MISSING


def _is_foreign(module: object) -> bool:
    return isinstance(module, str) and module != "__main__" and module.partition(".")[0] in _FOREIGN


def _names(code: CodeType) -> set[str]:
    """All names of globals and attributes that a function's code reads or writes."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*(_names(one) for one in inner))


def _holds_fake(found: object) -> bool:
    if isinstance(found, dict):
        return _holds_fake(list(found.values()))
    if isinstance(found, list | tuple | set):
        return any(_holds_fake(item) for item in found)
    return isinstance(found, FakeTensor) or _is_symbolic(found)


def _is_symbolic(found: object) -> bool:
    return isinstance(found, torch.SymInt | torch.SymFloat | torch.SymBool)


def _is_apply(found: object) -> bool:
    owner = getattr(found, "__self__", None) if isinstance(found, BuiltinFunctionType) else None
    return isinstance(owner, type) and issubclass(owner, torch.autograd.Function)
