"""The reference's mode: it sees a network's torch calls, and swaps those that gate for their softened twins."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sptrace.verification import eager_products
from sptrace.verification.eager_recurrences import OPENED
from sptrace.verification.eager_rules import RULES, Pullback, Rule, Rules, check, read
from sptrace.verification.eager_scopes import Scopes

# Kinds whose derivative jumps: in float32 nobody can tell on which side an input lies that is 0 but for rounding.
_JUMPS = ("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "max_pool", "maximum")
_JUMPING = (None, RULES["relu"]["guided"])


class _Softened(torch.autograd.Function):
    """Answer `value()`, whatever z is, and give z the cotangent that `pullback` makes."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Callable[[], Tensor], pullback: Pullback) -> Tensor:
        ctx.pullback = pullback
        result = value()
        # A view made here could not be written to by what follows.
        return result.clone() if result._is_view() else result

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pullback(cotangents[0]), None, None


def _ordinary(func: Any, z: Tensor, at: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pullback:
    """Return the ordinary pullback of a call in its argument z, taken at another place."""

    def pullback(cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = at.clone().requires_grad_()
            copy = leaf.clone()  # the call may work in place
            value = func(
                *(copy if argument is z else argument for argument in args),
                **{name: copy if argument is z else argument for name, argument in kwargs.items()},
            )
            value = value[0] if isinstance(value, tuple) else value
            return torch.autograd.grad(value, leaf, cotangent)[0]

    return pullback


class SoftenedGates(TorchFunctionMode):
    """Swaps gating calls for their softened twins.

    A mode sees the outermost call only, and is off while it handles it: F.relu hides the torch.relu inside,
    so that nothing is swapped twice.
    """

    def __init__(
        self,
        rules: Rules,
        scopes: Scopes,
        jitter: float = 0.0,
        seed: int = 0,
        doubted: Counter[tuple[str, str]] | None = None,
    ) -> None:
        super().__init__()
        self.rules = rules
        self.scopes = scopes
        self.checked: dict[str, Mapping[str, Rule]] = {}
        self.jitter = jitter
        self.doubted = doubted
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            return self._multi_head_attention(args, kwargs)
        name = str(getattr(func, "__name__", "")).partition(".")[0].strip("_")
        if name in OPENED:
            with self:
                return OPENED[name](*args, **kwargs)
        written_out = self._written_out(name, func, args, kwargs)
        if written_out is not None:
            return written_out
        kind, arguments = read(func, args, kwargs) or self._maximum(name, args, kwargs) or (None, {})
        make_pullback, tau = self._rule(kind)
        jumps = make_pullback in _JUMPING and self.jitter > 0 and kind in _JUMPS
        if make_pullback is None and not jumps:
            result = func(*args, **kwargs)
            if name == "batch_norm" and result.requires_grad:
                # torch 2.14.1 on the CPU: of one picture in eval mode its backward reads a cotangent with transposed
                # strides as if it were contiguous.
                result.register_hook(lambda cotangent: cotangent.contiguous())
            attention, attention_tau = self._rule("attention")
            if attention is not None or name != "softmax":
                eager_products.note(name, result, func, args, kwargs, attention_tau or 1.0)
            return result

        z = arguments.pop("value" if kind == "attention" else "input")
        with torch.no_grad():
            copy = z.clone()  # what an in-place call may overwrite while the rule still needs z
            value = func(
                *(copy if argument is z else argument for argument in args),
                **{name: copy if argument is z else argument for name, argument in kwargs.items()},
            )
            heated = self._temperature(z, tau)

            def at(place: Tensor) -> Pullback:
                if make_pullback is None:
                    return _ordinary(func, z, place, args, kwargs)
                return make_pullback(place, heated, **arguments)

            beside = self._beside(z, kind) if self.jitter > 0 and kind in _JUMPS else z
            pullback = at(beside)
            if self.doubted is not None and jumps:
                self._count(str(kind), value, pullback, at(z.detach()))
        if value is copy:  # that is how an in-place call answers
            return z.copy_(_Softened.apply(z, lambda: value, pullback))
        if isinstance(value, torch.return_types.max):
            return type(value)((_Softened.apply(z, lambda: value[0], pullback), value[1]))
        if isinstance(value, tuple):  # max-pooling with indices
            return _Softened.apply(z, lambda: value[0], pullback), *value[1:]
        return _Softened.apply(z, lambda: value, pullback)

    @staticmethod
    def _maximum(
        name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[str, dict[str, Any]] | None:
        """A maximum over dimensions: no gate with rules, but which number is the largest may be in doubt."""
        over_dimensions = name == "amax" or (name == "max" and (len(args) > 1 or kwargs))
        tensors = [item for item in (*args, *kwargs.values()) if isinstance(item, Tensor)]
        if not over_dimensions or len(tensors) != 1 or not tensors[0].is_floating_point():
            return None
        return "maximum", {"input": tensors[0]}

    def _written_out(
        self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The result of a call that is a gate only together with a call before it."""
        gated = eager_products.self_gate(name, args)
        if gated is not None:
            kind, z, sharpness = gated
            make_pullback, tau = self._rule(kind)
            if make_pullback is None:
                return None
            with torch.no_grad():
                pullback = make_pullback(z.clone(), self._temperature(z, tau), sharpness=sharpness)
                value = F.hardswish(z) if kind == "hardswish" else z * torch.sigmoid(sharpness * z)
            softened: Tensor = _Softened.apply(z, lambda: value, pullback)
            in_place: Tensor = args[0]
            return in_place.copy_(softened) if func in (Tensor.mul_, Tensor.__imul__) else softened
        found = eager_products.attended(name, func, args, kwargs)
        if found is None:
            return None
        with torch.no_grad():
            product = func(*args, **kwargs)
        attended: Tensor = _Softened.apply(found[0], lambda: product, found[1])
        return attended

    def _rule(self, kind: str | None) -> tuple[Callable[..., Pullback] | None, Any]:
        rules = self.rules if isinstance(self.rules, Mapping) else self._rules_here(self.rules)
        if kind is None or kind not in rules:
            return None, None
        rule, tau = rules[kind]
        return RULES[kind].get(rule), tau

    def _rules_here(self, rules: Callable[[str], Mapping[str, Rule]]) -> Mapping[str, Rule]:
        path = self.scopes.path
        if path not in self.checked:
            self.checked[path] = rules(path)
            check(self.checked[path])
        return self.checked[path]

    def _temperature(self, z: Tensor, tau: Any) -> Any:
        return self.scopes.temperature(z, *tau) if isinstance(tau, tuple) else tau

    def _beside(self, z: Tensor, kind: str | None) -> Tensor:
        """z moved a little, so that gates close to their threshold fall on either side.

        Exact zeros stay, but for one in a thousand or a single one, which may be a sum that happens to cancel: behind
        a ReLU, and in black parts of a picture, they are 0 in every correct program.
        """
        z = z.detach()
        noise = torch.randn(z.shape, generator=self.generator, dtype=z.dtype)
        zeros = z == 0
        if kind == "max_pool" or zeros.sum() > max(1, z.numel() // 1000):
            noise = noise * ~zeros
        return z + self.jitter * z.std() * noise

    def _count(self, kind: str, value: Any, moved: Pullback, usual: Pullback) -> None:
        """Inputs that get another share of a cotangent of ones when the gate's input is moved."""
        ones = torch.ones_like(value[0] if isinstance(value, tuple) else value)
        assert self.doubted is not None
        self.doubted[self.scopes.path, kind] += int((moved(ones) != usual(ones)).sum())

    def _multi_head_attention(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor | None]:
        """Look into F.multi_head_attention_forward, which as the outermost call would hide its attention."""
        plain = F.multi_head_attention_forward
        if self._rule("attention")[0] is None:
            return plain(*args, **kwargs)
        # The same code, made to run instead of handing itself over to this mode once more.
        namespace = {**plain.__globals__, "has_torch_function": lambda operands: False}
        opened = FunctionType(plain.__code__, namespace, plain.__name__, plain.__defaults__)
        with self:  # without weights it calls scaled_dot_product_attention
            output, _ = opened(*args, **{**kwargs, "need_weights": False})
        weights = plain(*args, **kwargs)[1] if kwargs.get("need_weights", True) else None
        return output, None if weights is None else weights.detach()
