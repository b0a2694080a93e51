"""The reference's mode: it sees a network's torch calls, and swaps those that gate for their softened twins."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from sptrace.compiler.reference import eager_maxima, eager_products, eager_spellings
from sptrace.compiler.reference.batch_norms import contiguous_cotangent
from sptrace.compiler.reference.eager_recurrences import OPENED
from sptrace.compiler.reference.eager_rules import (
    RULES,
    Pullback,
    Rule,
    Rules,
    check,
    read,
    shared,
    softmax_over,
)
from sptrace.compiler.reference.eager_scopes import Scopes

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
    """Return the ordinary pullback of a call in its argument z, taken at another place.

    It keeps no tensor with a history: of a call in place that would be its own, and nobody could free either.
    """
    at = at.detach()
    args, kwargs = tree_map(
        lambda item: at if item is z else item.detach() if isinstance(item, Tensor) else item,
        (tuple(args), dict(kwargs)),
    )

    def pullback(cotangent: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = at.clone().requires_grad_()
            copy = leaf.clone()  # the call may work in place
            given = tree_map(lambda item: copy if item is at else item, (args, kwargs))
            value = func(*given[0], **given[1])
            value = value[0] if isinstance(value, tuple) else value
            return torch.autograd.grad(value, leaf, cotangent)[0]

    return pullback


OfOneMap = eager_spellings.Slopes | eager_spellings.Bounds | eager_spellings.Curve


def _as_gate(found: OfOneMap) -> tuple[str, dict[str, Any], float, bool]:
    """Kind, arguments, factor, and whether it is the gate of -z."""
    if isinstance(found, eager_spellings.Curve):
        return found.shape.kind, dict(found.shape.arguments), found.shape.factor, found.shape.mirrored
    if isinstance(found, eager_spellings.Bounds):
        if found.high == 0:
            return "relu6", {"max_val": -found.low}, -1.0, True
        if found.low == 0:
            return "relu6", {"max_val": found.high}, 1.0, False
        return "hardtanh", {"min_val": found.low, "max_val": found.high}, 1.0, False
    if isinstance(found.below, float) and found.below == 0:
        return "relu", {}, found.above, False
    if found.above == 0 and isinstance(found.below, float):
        return "relu", {}, -found.below, True
    return "leaky_relu", {"negative_slope": found.below / found.above}, found.above, False


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
        of_image = any(map(eager_spellings.is_marked, tree_leaves((args, kwargs))))
        result = self._answer(func, args, kwargs)
        if of_image and not eager_spellings.SHAPED_ALIKE.fullmatch(str(getattr(func, "__name__", ""))):
            eager_spellings.mark(args[0] if result is None and args else result)
        return result

    def _answer(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the network gets for its call."""
        if func is F.multi_head_attention_forward:
            return self._multi_head_attention(args, kwargs)
        name = str(getattr(func, "__name__", "")).partition(".")[0].strip("_").removeprefix("special_")
        if name in OPENED:
            with self:
                return OPENED[name](*args, **kwargs)
        made = eager_spellings.made_by(name, func, args, kwargs)
        is_product = eager_products.self_gate(name, args) is not None
        is_named = is_product or read(func, args, kwargs) is not None
        reduced = eager_maxima.reduced(name, args, kwargs)
        if made is not None and (made.kinked or made.curved) and not is_named:
            result, made.gate = self._spelled(made)
            if made.in_place:
                result = args[0].copy_(result)
            else:
                self._note_products(name, result, func, args, kwargs)
        elif reduced is not None:
            result = self._reduced(reduced, func, args, kwargs)
        else:
            result = self._named(name, func, args, kwargs)
            if made is not None:
                made.gate = is_named
                made.curved = made.curved and not is_product
        if made is not None and isinstance(result, Tensor):
            eager_spellings.note(result, made)
        return None if name == "setitem" else result

    def _spelled(self, made: eager_spellings.Made) -> tuple[Tensor, bool]:
        """The result of a call that may end a gate written out of several; and whether it does."""
        result = made.run(lambda token: token.tensor)
        found = eager_spellings.find(made, result)
        if found is None:
            return result, False
        if isinstance(found, eager_spellings.Larger):
            z = eager_maxima.stacked(found.first.tensor, found.second.tensor, result.shape)
            over = self._over_dimensions(z, [1], found.largest)
            pullback = None if over is None else (lambda cotangent: over(cotangent.unsqueeze(1)))
        else:
            made.curved = made.curved and not isinstance(found, eager_spellings.Curve)
            z = found.z.tensor
            pullback = self._of_one_map(made, found, result)
        if pullback is None:
            return result, True
        value = result.detach()
        return _Softened.apply(z, lambda: value, pullback), True

    def _of_one_map(
        self,
        made: eager_spellings.Made,
        found: OfOneMap,
        result: Tensor,
    ) -> Pullback | None:
        """The pullback of factor * gate(z), or of factor * gate(-z); None: it is the ordinary one."""
        kind, arguments, factor, mirrored = _as_gate(found)
        make_pullback, tau = self._rule(kind)
        # A clamp of a ReLU is one gate, and a Hardswish of a ReLU6: by its own rule, not by that of the parts.
        if make_pullback is None and self.jitter == 0 and isinstance(found, eager_spellings.Slopes):
            return None
        z, sign = found.z.tensor.detach(), -1.0 if mirrored else 1.0
        with torch.no_grad():
            heated = None if make_pullback is None else self._temperature(sign * z, tau)

            def at(place: Tensor) -> Pullback:
                if make_pullback is None:
                    return eager_spellings.ordinary(made, found.z, place)
                softened = make_pullback(sign * place, heated, **arguments)
                return lambda cotangent: sign * softened(factor * cotangent)

            jumps = kind in _JUMPS
            pullback = at(self._beside(z, kind) if jumps else z)
            if jumps and make_pullback in _JUMPING:
                self._count(kind, result, pullback, lambda: at(z))
        return pullback

    def _reduced(
        self, reduced: eager_maxima.Reduced, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """A maximum or minimum over dimensions."""
        z, dims = reduced.z, reduced.dims
        pullback = self._over_dimensions(z, dims, reduced.largest)
        if pullback is None:
            return func(*args, **kwargs)
        with torch.no_grad():
            result = func(*args, **kwargs)
        value = result[0] if isinstance(result, tuple) else result
        kept = [1 if dim in dims else size for dim, size in enumerate(z.shape)]
        softened = _Softened.apply(z, lambda: value, lambda cotangent: pullback(cotangent.reshape(kept)))
        return type(result)((softened, result[1])) if isinstance(result, tuple) else softened

    def _over_dimensions(self, z: Tensor, dims: list[int], largest: bool) -> Pullback | None:
        """The pullback of a maximum, or of a minimum, over dimensions that stay; None: it is the ordinary one."""
        rules = self._rules()
        rule, tau = rules.get("max_pool", ("hard", None))
        with torch.no_grad():
            at = z.detach() if largest else -z.detach()
            beside = self._beside(at, "maximum")
            if rule == "softmax":
                # Of a stack of maps, [4, N, ...], the pictures come second.
                rest = [dim for dim in range(z.ndim) if dim not in dims]
                first = next((dim for dim in rest if z.shape[dim] % self.scopes.pictures == 0), 0)
                scale = self._temperature(at.movedim(first, 0), tau)
                scale = scale.movedim(0, first) if isinstance(scale, Tensor) else scale
                return softmax_over(beside, scale, dims)
            if self.jitter > 0:
                pullback = shared(beside, dims)
                self._count("maximum", at.amax(dims, keepdim=True), pullback, lambda: shared(at, dims))
                return pullback
        return None

    def _named(self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """The result of a call whose name says whether it is a gate."""
        written_out = self._written_out(name, func, args, kwargs)
        if written_out is not None:
            return written_out
        kind, arguments = read(func, args, kwargs) or (None, {})
        make_pullback, tau = self._rule(kind)
        jumps = make_pullback in _JUMPING and self.jitter > 0 and kind in _JUMPS
        if make_pullback is None and not jumps:
            result = func(*args, **kwargs)
            if name == "batch_norm":
                contiguous_cotangent(result)
            self._note_products(name, result, func, args, kwargs)
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

            pullback = at(self._beside(z, kind) if kind in _JUMPS else z)
            if jumps:
                self._count(str(kind), value, pullback, lambda: at(z.detach()))
        if value is copy:  # that is how an in-place call answers
            return z.copy_(_Softened.apply(z, lambda: value, pullback))
        if isinstance(value, tuple):  # max-pooling with indices
            return _Softened.apply(z, lambda: value[0], pullback), *value[1:]
        return _Softened.apply(z, lambda: value, pullback)

    def _note_products(
        self, name: str, result: Any, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> None:
        attention, tau = self._rule("attention")
        if attention is not None or name != "softmax":
            eager_products.note(name, result, func, args, kwargs, tau or 1.0)

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
        rules = self._rules()
        if kind is None or kind not in rules:
            return None, None
        rule, tau = rules[kind]
        return RULES[kind].get(rule), tau

    def _rules(self) -> Mapping[str, Rule]:
        return self.rules if isinstance(self.rules, Mapping) else self._rules_here(self.rules)

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
        if self.jitter == 0:
            return z
        noise = torch.randn(z.shape, generator=self.generator, dtype=z.dtype)
        zeros = z == 0
        if kind == "max_pool" or zeros.sum() > max(1, z.numel() // 1000):
            noise = noise * ~zeros
        return z + self.jitter * z.std() * noise

    def _count(self, kind: str, value: Any, moved: Pullback, usual: Callable[[], Pullback]) -> None:
        """Inputs that get another share of a cotangent of ones when the gate's input is moved."""
        if self.doubted is None:
            return
        ones = torch.ones_like(value[0] if isinstance(value, tuple) else value)
        self.doubted[self.scopes.path, kind] += int((moved(ones) != usual()(ones)).sum())

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
