"""What a network's code does to gradients is left out: the pullback is that of what it computes.

Own backward passes (`autograd.Function`: gradient reversal, straight-through estimators, swish that saves memory),
hooks on gradients, and `inference_mode` say how a network is trained, or keep it from being explained.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils.hooks import RemovableHandle

from sptrace.compiler.capture.source_lines import running_line
from sptrace.errors import UnsupportedError

_HOOKING = frozenset({Tensor.register_hook, Tensor.register_post_accumulate_grad_hook, Tensor.retain_grad})
_DETACHING = frozenset({Tensor.detach, torch.detach, Tensor.data.__get__})  # type: ignore[attr-defined]
_DIFFERENTIATING = frozenset({torch.autograd.grad, torch.autograd.backward, Tensor.backward})
_BACKWARD_HOOKS = ("_backward_hooks", "_backward_pre_hooks")


_CUTS = {
    **dict.fromkeys([torch.unbind, Tensor.unbind], 1),
    **dict.fromkeys([torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.tensor_split], 2),
    **dict.fromkeys([Tensor.tensor_split, torch.split_with_sizes, Tensor.split_with_sizes], 2),
}
"""What cuts a tensor into several, and which of its arguments is the dimension."""


def _cut(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The pieces of a tensor, each by itself: autograd lets nobody write to pieces that came together."""
    pieces = func(*args, **kwargs)
    whole = args[0] if args else kwargs.get("self", kwargs.get("tensor"))
    if not isinstance(whole, Tensor) or not whole.requires_grad:
        return pieces
    place = _CUTS[func]
    dim = kwargs.get("dim", args[place] if len(args) > place else 0)
    if func in (torch.unbind, Tensor.unbind):
        return tuple(whole.select(dim, index) for index in range(len(pieces)))
    alone, start = [], 0
    for piece in pieces:
        alone.append(whole.narrow(dim, start, piece.shape[dim]))
        start += piece.shape[dim]
    return tuple(alone)


def _given_out(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """A result that is to lie in a tensor which is there already: autograd writes no other way than by `copy_`."""
    out: Tensor = kwargs.pop("out")
    result = func(*args, **kwargs)
    return out.copy_(result) if out.shape == result.shape else func(*args, **kwargs, out=out)


class ForwardAlone(TorchFunctionMode):
    """Within this mode a network's code cannot change what autograd does, but for stopping gradients.

    Attributes:
        left_out: in words, what has been left out so far.
        stops: did the network switch gradients off?
        ignores_stops: let gradients pass where the network switches them off.
    """

    def __init__(self) -> None:
        super().__init__()
        self.left_out: dict[str, None] = {}
        self.stops = False
        self.ignores_stops = False
        self.depth = 0
        """How many autograd.Functions are running: their forward is code without gradients, and may detach."""

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            self.stops |= not args[0]
            if self.ignores_stops or self.depth:
                return None
        elif func in _HOOKING:
            if func is not Tensor.retain_grad:
                self.left_out["a hook on the gradient of a tensor"] = None
            return RemovableHandle(OrderedDict())
        elif func in _DIFFERENTIATING:
            raise UnsupportedError(
                f"the network takes a gradient inside of forward ({running_line()}), and an explanation would need the "
                "gradient of that: compile the network without it"
            )
        elif self.depth and func in _DETACHING:
            return args[0].view_as(args[0])
        elif torch.is_grad_enabled():
            if func in _CUTS:
                return _cut(func, args, kwargs or {})
            if kwargs and isinstance(kwargs.get("out"), Tensor):
                return _given_out(func, args, dict(kwargs))
        return func(*args, **(kwargs or {}))

    def __deepcopy__(self, memo: object) -> ForwardAlone:
        return self

    def run(self, function: type[Function], *args: Any, **kwargs: Any) -> Any:
        """What an autograd.Function computes, differentiated as any other code."""
        if function is checkpoint.CheckpointFunction:
            run, _preserve_random, *inputs = args
            return run(*inputs)
        self.left_out[f"the backward pass of {function.__name__}"] = None
        separate = function.setup_context is not Function.setup_context
        self.depth += 1
        try:
            # The type checker knows forward as it was before setup_context.
            forward: Any = function.forward
            return forward(*args, **kwargs) if separate else forward(_Context(args), *args, **kwargs)
        finally:
            self.depth -= 1


class _Context:
    """Stands for the context of an autograd.Function, whose backward will not be called."""

    def __init__(self, args: Sequence[Any]) -> None:
        self.needs_input_grad = tuple(isinstance(argument, Tensor) for argument in args)
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        pass

    def mark_dirty(self, *tensors: Any) -> None:
        pass

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


@contextmanager
def forward_alone(
    network: nn.Module, mode: ForwardAlone, bound: Iterable[tuple[dict[Any, Any], Any]]
) -> Iterator[None]:
    """Within this context autograd.Functions of the network's are their forward, and no hook sees a gradient.

    `inference_mode` is no more than `no_grad`. The network's modules lose their backward hooks: whoever calls this
    gives them back. `mode` has to surround the network's own code besides.

    Arguments:
        network: whose backward hooks are taken off.
        mode: learns what is left out.
        bound: where methods `apply` lie that were bound before; they are bound anew, and the caller puts them back.
    """
    for path, module in network.named_modules():
        for hooks in (getattr(module, name) for name in _BACKWARD_HOOKS):
            if hooks:
                mode.left_out[f"the backward hook of {path or 'the network'}"] = None
                hooks.clear()
    # PyTorch has no other way to see these calls.
    apply = vars(Function)["apply"]
    enter, leave = torch.inference_mode.__enter__, torch.inference_mode.__exit__

    def applied(function: type[Function], *args: Any, **kwargs: Any) -> Any:
        own = function.__module__.partition(".")[0]
        if own == "sptrace" or (own == "torch" and function is not checkpoint.CheckpointFunction):
            return apply.__get__(None, function)(*args, **kwargs)
        return mode.run(function, *args, **kwargs)

    def stop(self: Any) -> None:
        self._stopped = torch.set_grad_enabled(not self.mode and torch.is_grad_enabled())
        mode.stops |= self.mode

    def go_on(self: Any, *error: object) -> None:
        torch.set_grad_enabled(self._stopped.prev)

    Function.apply = classmethod(applied)
    for place, key in bound:
        place[key] = place[key].__self__.apply
    torch.inference_mode.__enter__, torch.inference_mode.__exit__ = stop, go_on  # type: ignore[method-assign]
    try:
        yield
    finally:
        Function.apply = apply
        torch.inference_mode.__enter__, torch.inference_mode.__exit__ = enter, leave  # type: ignore[method-assign]
