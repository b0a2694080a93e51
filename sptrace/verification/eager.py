"""The reference: the original network under autograd, with every gating call swapped for a softened twin.

An independent second implementation of Semantic Pullbacks (arXiv 2507.22832), against which compiled programs
are verified. It shares no code with the compiler, and is written to be read, not to be fast: nothing is
captured or rewritten. The network's own Python runs under a mode that sees its torch calls; a call that gates
keeps its value and has its backward replaced by the rule.

Two tables hold all there is to know: `_RULES`, what a rule does with the cotangent, and `_CALLS`, which calls
are of which kind. Whatever is in neither is ordinary autograd.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sptrace.errors import UnsupportedError
from sptrace.verification import eager_gates, eager_products
from sptrace.verification.eager_scopes import Scopes

__all__ = ["Rule", "activation", "at_layer", "measure", "reference"]

Rule = tuple[str, float | tuple[float] | None]
"""A rule's name and its temperature: a number, (factor,) for one relative to the gate's input, or None."""

Rules = Mapping[str, Rule] | Callable[[str], Mapping[str, Rule]]
Pullback = Callable[[Tensor], Tensor]


def reference(
    module: nn.Module,
    image: Tensor,
    target: Tensor,
    *,
    rules: Rules,
    scales: list[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
    objective: str = "logit",
    layer: str | None = None,
    position: Sequence[int] | None = None,
    jitter: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pull the target logit of every sample back to its image (METHOD: arXiv 2507.22832), or a layer's channel.

    Arguments:
        module: a network in eval mode, [N, C, H, W] to logits [N, classes] as a tensor, as an object
            with `.logits` or in a mapping with "logits". Its buffers and parameters' `.grad` are left alone.
        image: [N, C, H, W] in `input_range`, of the floating point type of the module.
        target: [N] int64, the class or channel to explain; -1 stands for the largest of that sample. Or [N, classes
            or channels], floating point: the direction to explain.
        rules: for each kind of gate a pair (rule, temperature), or a function from the path of the module that
            calls the gate to such a mapping. A kind that is missing, or whose rule is "hard", is left to autograd.
            A temperature (c,) is c times the standard deviation of the gate's input over its picture.

            =============  ===================  ==========================================================
            kind           rules beside "hard"  covers
            =============  ===================  ==========================================================
            "relu"         "phi", "sigmoid"     ReLU, and clamping from below at 0
            "relu6"        "phi", "relu"        ReLU6, and Hardtanh with lower bound 0
            "hardtanh"     "gate"               Hardtanh with a negative lower bound; has no temperature
            "max_pool"     "softmax"            max-pooling of pictures
            "silu"         "gate"
            "gelu"         "gate"               both approximations
            "leaky_relu"   "phi"                PReLU too
            "elu"          "phi"                SELU and CELU too
            "quick_gelu"   "gate"               x * sigmoid(c * x), written out; with c = 1 it is "silu"
            "hardswish"    "gate"
            "mish"         "gate"
            "softplus"     "gate"
            "layer_norm"   "frozen"             has no temperature
            "group_norm"   "frozen"             instance norm too; has no temperature
            "rms_norm"     "frozen"             has no temperature
            "attention"    "value", "full"      scaled_dot_product_attention, and a softmax that a product of
                                                matrices follows; "full" is autograd again
            =============  ===================  ==========================================================
        scales: what relative temperatures take in place of those standard deviations: one number a gate, in the
            order of the calls, as `measure` gives them.
        mean: one value per channel, as `std`. When given, what the network sees is
            ((image - low) / (high - low) - mean) / std; when None, the image as it is.
        std: see `mean`; both or neither.
        input_range: (low, high), the values of black and white in `image`.
        objective: what is pulled back: the target's "logit", or its log-probability ("cross_entropy").
        layer: path of a module that is called once and gives [N, C, H, W], [N, T, C] or [N, C]: explained are its
            channels, summed over space or tokens. None: the logits.
        position: row and column, or number of a token, in place of the sum.
        jitter: hard gates take their derivative at z + jitter * std(z) * noise, values stay. Repeated with several
            seeds this tells how far a gradient depends on gates that are closer to their threshold than that.
        seed: of the jitter's noise.

    Returns:
        attribution [N, C, H, W], logits [N, classes], and target [N] with every -1 resolved.

    Raises:
        ValueError: the module is in training mode, only one of mean and std is given, or a rule is unknown or
            lacks its temperature.
        UnsupportedError: a softened gate is called in a form that has no rule here.

    """
    with torch.enable_grad(), _frozen(module):
        leaf, logits, kept = _run(module, image, layer, rules, scales, mean, std, input_range, jitter, seed)
        values = logits if kept is None else _summed(kept, position)
        resolved, direction = _directed(target, values)
        if objective == "cross_entropy":
            direction = direction - values.detach().softmax(1)
        (attribution,) = torch.autograd.grad(values, leaf, direction)
    return attribution, logits.detach(), resolved


def at_layer(
    module: nn.Module,
    image: Tensor,
    target: Tensor,
    *,
    layer: str,
    rules: Rules,
    scales: list[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
    jitter: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return a layer's output, and the target logit pulled back to it; arguments as of `reference`."""
    with torch.enable_grad(), _frozen(module):
        _, logits, kept = _run(module, image, layer, rules, scales, mean, std, input_range, jitter, seed)
        assert kept is not None
        (cotangent,) = torch.autograd.grad(logits, kept, _directed(target, logits)[1])
    return kept.detach(), cotangent


def activation(
    module: nn.Module,
    image: Tensor,
    *,
    layer: str,
    position: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Return the layer's channels [N, C], at the position or summed; arguments as of `reference`."""
    with torch.enable_grad(), _frozen(module):
        _, _, kept = _run(module, image, layer, {}, None, mean, std, input_range, 0.0, 0)
        assert kept is not None
        return _summed(kept, position).detach()


def _run(
    module: nn.Module,
    image: Tensor,
    layer: str | None,
    rules: Rules,
    scales: list[float] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_range: tuple[float, float],
    jitter: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the leaf that stands for the image, the logits, and the layer's output if there is a layer."""
    # An exported graph has its mode baked in, and a `training` flag that means nothing.
    if module.training and not isinstance(module, torch.fx.GraphModule):
        raise ValueError("the reference needs a module in eval mode: call module.eval() first")
    if (mean is None) != (std is None):
        raise ValueError("give both mean and std, or neither")
    if isinstance(rules, Mapping):
        _check(rules)
    scopes = Scopes(len(image), scales)
    leaf = image.detach().requires_grad_()
    pixels = _normalised(leaf, mean, std, input_range)
    kept: list[Tensor] = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.clone())
        return kept[0].clone()  # what follows may work in place

    hook = None if layer is None else module.get_submodule(layer).register_forward_hook(keep)
    try:
        with _SoftenedGates(rules, scopes, jitter, seed), scopes.following(module):
            output = module(pixels)
    finally:
        if hook is not None:
            hook.remove()
    logits = output["logits"] if isinstance(output, Mapping) else getattr(output, "logits", output)
    return leaf, logits, kept[0] if kept else None


def _directed(target: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target with every -1 resolved, and the direction that it names; a direction is both itself."""
    if target.is_floating_point():
        return target, target
    resolved = torch.where(target == -1, values.argmax(1), target)
    return resolved, F.one_hot(resolved, values.shape[1]).to(values.dtype)


def _summed(output: Tensor, position: Sequence[int] | None) -> Tensor:
    """Return the channels [N, C] of a layer's output, at the position or summed."""
    channels = output if output.ndim != 3 else output.transpose(1, 2)  # tokens have their channels last
    if position is not None:
        for index in position:
            channels = channels.select(2, index)
        return channels
    return channels.flatten(2).sum(2) if channels.ndim > 2 else channels


@torch.no_grad()
def measure(
    module: nn.Module,
    pictures: Tensor,
    *,
    rules: Rules,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> list[float]:
    """The standard deviation of the input of every gate with a relative temperature, in the order of the calls.

    Each is of one picture, averaged over the pictures; arguments as in `reference`.
    """
    measured = []
    for first in range(0, len(pictures), 8):
        some = pictures[first : first + 8]
        scopes = Scopes(len(some))
        with _SoftenedGates(rules, scopes), scopes.following(module):
            module(_normalised(some, mean, std, input_range))
        measured.append(scopes.seen)
    return [float(torch.cat(column).mean()) for column in zip(*measured, strict=True)]


def _normalised(
    image: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_range: tuple[float, float],
) -> Tensor:
    pixels = image.clone()  # a network may overwrite its input, autograd forbids that of a leaf
    if mean is not None and std is not None:
        low, high = input_range
        centre, scale = (image.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        pixels = ((pixels - low) / (high - low) - centre) / scale
    return pixels


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Within this context parameters ask for no gradient, so that a tensor that does depends on the image."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _check(rules: Mapping[str, Rule]) -> None:
    for kind, (rule, temperature) in rules.items():
        known = ["hard", *_RULES.get(kind, ())]
        if kind not in _RULES or rule not in known:
            raise ValueError(
                f"no rule {rule!r} for {kind!r}; kinds: {', '.join(_RULES)}; rules: {', '.join(known)}"
            )
        softens = _RULES[kind].get(rule) is not None
        heated = softens and kind not in _WITHOUT_TEMPERATURE and rule != "guided"
        number = temperature[0] if isinstance(temperature, tuple) else temperature
        if heated and (number is None or number <= 0):
            raise ValueError(f"rule {rule!r} for {kind!r} needs a temperature above 0, not {temperature}")


# --- The rules: from a gate's input z, the temperature tau and the call's other arguments to the pullback ---


def _phi(t: Tensor) -> Tensor:
    """Return the standard normal CDF."""
    return (1 + torch.erf(t / math.sqrt(2))) / 2


def _phi_tanh(t: Tensor) -> Tensor:
    """Return the standard normal CDF as GELU's tanh form approximates it."""
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3))) / 2


def _times(gate: Callable[..., Tensor]) -> Callable[..., Pullback]:
    """Make the rule that multiplies the cotangent by a gate."""

    def rule(z: Tensor, tau: float | None, **arguments: Any) -> Pullback:
        factor = gate(z, tau, **arguments)
        return lambda cotangent: cotangent * factor

    return rule


def _frozen_scale(
    z: Tensor,
    tau: None,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float = 1e-5,
    **_: Any,
) -> Tensor:
    if math.prod(normalized_shape) == 1:
        return torch.zeros_like(z)  # a single number less its mean: a constant
    axes = tuple(range(-len(normalized_shape), 0))
    scale = 1 / torch.sqrt(z.var(axes, unbiased=False, keepdim=True) + eps)
    return scale if weight is None else scale * weight


def _softmax_pool(
    z: Tensor,
    tau: float | Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **_: Any,
) -> Pullback:
    """Spread the cotangent over its window by softmax(window / tau); cells beyond the picture count as 0."""
    sizes = (kernel_size, stride or kernel_size, padding, dilation)
    kernel, stride, padding, dilation = (
        (size, size) if isinstance(size, int) else (size[0], size[-1]) for size in sizes
    )
    overhang = []
    for size, k, s, p, d in zip(z.shape[-2:], kernel, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        windows = (size + 2 * p - reach + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (windows - 1) * s >= size + p:
            windows -= 1  # PyTorch drops a last window that would start in the right padding
        overhang.append(max(0, (windows - 1) * s + reach - size - 2 * p))
    (top, left), (height, width) = padding, z.shape[-2:]
    # One channel at a time: whatever stands before the last two axes is a batch.
    canvas = F.pad(
        (z / tau).reshape(-1, 1, height, width), (left, left + overhang[1], top, top + overhang[0])
    )
    weights = torch.softmax(F.unfold(canvas, kernel, dilation, stride=stride), dim=1)

    def pullback(cotangent: Tensor) -> Tensor:
        spread = weights * cotangent.reshape(weights.shape[0], 1, -1)
        picture = F.fold(spread, canvas.shape[-2:], kernel, dilation, stride=stride)
        return picture[..., top : top + height, left : left + width].reshape(z.shape)

    return pullback


def _frozen_attention(
    value: Tensor,
    tau: float,
    query: Tensor,
    key: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Pullback:
    """Freeze the attention matrix, softened: only the value carries the cotangent."""
    if enable_gqa:
        raise UnsupportedError(
            "the reference cannot soften enable_gqa attention: repeat key and value instead"
        )
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones_like(logits, dtype=torch.bool).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -math.inf) if is_bool else logits + attn_mask
    weights = torch.softmax(logits / tau, dim=-1)
    return lambda cotangent: (weights.transpose(-2, -1) @ cotangent).sum_to_size(value.shape)


# METHOD names relu, max_pool, silu, gelu, layer_norm, attention; of all others it says: write the activation
# as y = z * m(z) and soften m. ReLU6's m is a step at 0, softened to Phi, and high / z above high. A Hardtanh
# with low < 0 < high has m = 1 inside, high / z above, low / z below: no step, so m as it is. None: autograd.
_WITHOUT_TEMPERATURE = ("hardtanh", "layer_norm", "group_norm", "rms_norm")
_RULES: dict[str, dict[str, Callable[..., Pullback] | None]] = {
    "relu": {
        "phi": _times(lambda z, tau, **_: _phi(z / tau)),
        "sigmoid": _times(lambda z, tau, **_: torch.sigmoid(z / tau)),
        "guided": lambda z, tau, **_: lambda cotangent: F.relu(cotangent) * (z > 0),
    },
    "relu6": {
        "phi": _times(lambda z, tau, max_val=6.0, **_: _phi(z / tau) * (max_val / z.clamp(min=max_val))),
        "relu": _times(lambda z, tau, **_: _phi(z / tau)),
    },
    "hardtanh": {
        "gate": _times(
            lambda z, tau, min_val=-1.0, max_val=1.0, **_: (
                max_val / z.clamp(min=max_val) * (min_val / z.clamp(max=min_val))
            )
        ),
    },
    "silu": {"gate": _times(lambda z, tau, **_: torch.sigmoid(z / tau))},
    "gelu": {
        "gate": _times(
            lambda z, tau, approximate="none", **_: (_phi_tanh if approximate == "tanh" else _phi)(z / tau)
        ),
    },
    "max_pool": {"softmax": _softmax_pool},
    "layer_norm": {"frozen": _times(_frozen_scale)},
    "attention": {"value": _frozen_attention, "full": None},
    **{
        kind: {rule: _times(factor) for rule, factor in rules.items()}
        for kind, rules in eager_gates.FACTORS.items()
    },
}


# --- The calls: by the name that F.relu, torch.relu_, Tensor.relu, torch.ops.aten.relu_.default ... share ---

_MAX_POOL = ("max_pool", "input kernel_size stride padding dilation ceil_mode return_indices")
# The name of a call: the kind of its gate, and the names of the arguments that it takes by position.
_CALLS: dict[str, tuple[str, str]] = {
    "relu": ("relu", "input inplace"),
    "clamp": ("clamp", "input min max"),
    "clamp_min": ("clamp", "input min"),
    "clip": ("clamp", "input min max"),
    "relu6": ("relu6", "input inplace"),
    "hardtanh": ("hardtanh", "input min_val max_val inplace"),
    "max_pool2d": _MAX_POOL,
    "max_pool2d_with_indices": _MAX_POOL,
    "silu": ("silu", "input inplace"),
    "gelu": ("gelu", "input"),
    "layer_norm": ("layer_norm", "input normalized_shape weight bias eps cudnn_enable"),
    "scaled_dot_product_attention": ("attention", "query key value attn_mask dropout_p is_causal"),
    **eager_gates.CALLS,
}


def _read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the kind of gate that a call is, with its arguments by name; None for any other call."""
    name = str(getattr(func, "__name__", "")).partition(".")[0].removesuffix("_")
    if name not in _CALLS:
        return None
    kind, names = _CALLS[name]
    arguments = {**dict(zip(names.split(), args, strict=False)), **kwargs}
    if kind == "clamp":
        low = arguments.get("min")
        is_relu = isinstance(low, (int, float)) and low == 0 and arguments.get("max") is None
        return ("relu", arguments) if is_relu else None
    if kind == "hardtanh":
        low, high = arguments.get("min_val", -1), arguments.get("max_val", 1)
        if low > 0 or high <= 0:
            return None  # y = z * m(z) would need an infinite m at 0: a clamp, not a gate
        return "relu6" if low == 0 else "hardtanh", arguments
    if kind == "elu":
        arguments["form"] = name
    if name == "instance_norm" and not arguments.get("use_input_stats", True):
        return None  # a batch norm under another name
    return kind, arguments


# --- The mode ---

# Kinds whose derivative jumps: in float32 nobody can tell on which side an input lies that is 0 but for rounding.
_JUMPS = ("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "max_pool")


class _Softened(torch.autograd.Function):
    """Answer `value()`, whatever z is, and give z the cotangent that `pullback` makes."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, value: Callable[[], Tensor], pullback: Pullback) -> Tensor:
        ctx.pullback = pullback
        return value()

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


class _SoftenedGates(TorchFunctionMode):
    """Swaps gating calls for their softened twins.

    A mode sees the outermost call only, and is off while it handles it: F.relu hides the torch.relu inside,
    so that nothing is swapped twice.
    """

    def __init__(self, rules: Rules, scopes: Scopes, jitter: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.rules = rules
        self.scopes = scopes
        self.checked: dict[str, Mapping[str, Rule]] = {}
        self.jitter = jitter
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
        written_out = self._written_out(name, func, args, kwargs)
        if written_out is not None:
            return written_out
        kind, arguments = _read(func, args, kwargs) or (None, {})
        make_pullback, tau = self._rule(kind)
        jumps = make_pullback is None and self.jitter > 0 and kind in _JUMPS
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
            beside = self._beside(z, kind) if self.jitter > 0 and kind in _JUMPS else z
            if make_pullback is not None:
                pullback = make_pullback(beside, self._temperature(z, tau), **arguments)
            else:
                pullback = _ordinary(func, z, beside, args, kwargs)
        if value is copy:  # that is how an in-place call answers
            return z.copy_(_Softened.apply(z, lambda: value, pullback))
        if isinstance(value, tuple):  # max-pooling with indices
            return _Softened.apply(z, lambda: value[0], pullback), *value[1:]
        return _Softened.apply(z, lambda: value, pullback)

    def _written_out(
        self, name: str, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """The result of a call that is a gate only together with a call before it."""
        gated = eager_products.self_gate(name, args)
        if gated is not None:
            z, sharpness = gated
            make_pullback, tau = self._rule("silu" if sharpness == 1 else "quick_gelu")
            if make_pullback is None:
                return None
            with torch.no_grad():
                pullback = make_pullback(z.clone(), self._temperature(z, tau), sharpness=sharpness)
                value = z * torch.sigmoid(sharpness * z)
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
        return _RULES[kind].get(rule), tau

    def _rules_here(self, rules: Callable[[str], Mapping[str, Rule]]) -> Mapping[str, Rule]:
        path = self.scopes.path
        if path not in self.checked:
            self.checked[path] = rules(path)
            _check(self.checked[path])
        return self.checked[path]

    def _temperature(self, z: Tensor, tau: Any) -> Any:
        return self.scopes.temperature(z, *tau) if isinstance(tau, tuple) else tau

    def _beside(self, z: Tensor, kind: str | None) -> Tensor:
        """z moved a little, so that gates close to their threshold fall on either side.

        Exact zeros in a max pool stay: behind a ReLU whole windows of them are equal in every correct program.
        """
        noise = torch.randn(z.shape, generator=self.generator, dtype=z.dtype)
        if kind == "max_pool":
            noise = noise * (z.detach() != 0)
        return z.detach() + self.jitter * z.std() * noise

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
