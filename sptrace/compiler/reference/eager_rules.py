"""The reference's tables: what a rule does with the cotangent, and which torch calls are gates of which kind.

Like `reference.eager` this shares no code with the compiler. Whatever is in neither table is ordinary
autograd.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sptrace.compiler.reference import eager_gates

Rule = tuple[str, float | tuple[float, str] | None]
"""A rule's name and its temperature: a number, (factor, unit) for one relative to the gate's input, or None."""

Rules = Mapping[str, Rule] | Callable[[str], Mapping[str, Rule]]
Pullback = Callable[[Tensor], Tensor]


def check(rules: Mapping[str, Rule]) -> None:
    """Raise ValueError if a rule is unknown or lacks its temperature."""
    for kind, (rule, temperature) in rules.items():
        known = ["hard", *RULES.get(kind, ())]
        if kind not in RULES or rule not in known:
            raise ValueError(
                f"no rule {rule!r} for {kind!r}; kinds: {', '.join(RULES)}; rules: {', '.join(known)}"
            )
        softens = RULES[kind].get(rule) is not None
        heated = softens and kind not in _WITHOUT_TEMPERATURE and rule != "guided"
        number = temperature[0] if isinstance(temperature, tuple) else temperature
        if heated and (number is None or number <= 0):
            raise ValueError(f"rule {rule!r} for {kind!r} needs a temperature above 0, not {temperature}")


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


def _padded_windows(
    size: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool
) -> Tensor:
    """The cells of each window along a dimension, [windows, kernel]; beyond it -1. PyTorch says how many there are."""
    count = F.max_pool1d(torch.zeros(1, 1, size), kernel, stride, padding, dilation, ceil_mode).shape[2]
    cells = stride * torch.arange(count)[:, None] + dilation * torch.arange(kernel) - padding
    return torch.where((cells >= 0) & (cells < size), cells, -1)


def _adaptive_windows(size: int, count: int) -> Tensor:
    """The cells of as many windows as are asked for; -2 behind the last of a shorter one."""
    first = torch.arange(count) * size // count
    last = ((torch.arange(count) + 1) * size + count - 1) // count - 1
    cells = first[:, None] + torch.arange(int((last - first).max()) + 1)
    return torch.where(cells <= last[:, None], cells, -2)


def _softmax_cells(z: Tensor, tau: float | Tensor, windows: Sequence[Tensor]) -> Pullback:
    """Spread over windows of any kind along the last dimensions; a cell of -1 counts as 0, one of -2 does not."""
    rank = len(windows)
    shapes = [
        [1] * (2 * number) + list(one.shape) + [1] * (2 * (rank - number - 1))
        for number, one in enumerate(windows)
    ]
    along = [one.reshape(sizes) for one, sizes in zip(windows, shapes, strict=True)]
    places = torch.broadcast_tensors(*along)  # type: ignore[no-untyped-call]
    inside, counts = (torch.stack([place > least for place in places]).all(0) for least in (-1, -2))
    index: tuple[Any, ...] = (slice(None), *(place.clamp(min=0) for place in places))
    maps = z.reshape(-1, *z.shape[-rank:])
    cells = torch.where(inside, (z / tau).reshape(maps.shape)[index], 0.0).masked_fill(~counts, -math.inf)
    within = list(range(2, 2 * rank + 1, 2))
    powers = torch.exp(cells - cells.amax(within, keepdim=True))
    weights = powers / powers.sum(within, keepdim=True) * inside

    def pullback(cotangent: Tensor) -> Tensor:
        apart = cotangent.reshape(-1, *(size for one in windows for size in (len(one), 1)))
        rows = torch.arange(len(maps)).reshape(-1, *[1] * (2 * rank))
        spread = torch.zeros_like(maps).index_put((rows, *index[1:]), weights * apart, accumulate=True)
        return spread.reshape(z.shape)

    return pullback


def _per_dimension(option: Any, rank: int) -> list[Any]:
    numbers = list(option) if isinstance(option, tuple | list) else [option]
    return numbers * rank if len(numbers) == 1 else numbers


def _softmax_windows(z: Tensor, tau: float | Tensor, form: str, **arguments: Any) -> Pullback:
    """Spread over the windows of a pool by its name: of pictures, of rows, or as many windows as are asked for."""
    rank = int(form[form.index("pool") + 4])
    if rank == 2 and "output_size" not in arguments:
        return _softmax_pool(z, tau, **arguments)
    sizes = list(z.shape[-rank:])
    if "output_size" in arguments:
        asked = _per_dimension(arguments["output_size"], rank)
        counts = (count or size for count, size in zip(asked, sizes, strict=True))
        return _softmax_cells(z, tau, list(map(_adaptive_windows, sizes, counts)))
    named = {"stride": arguments["kernel_size"], "padding": 0, "dilation": 1, "ceil_mode": False}
    named |= {name: option for name, option in arguments.items() if option not in (None, [], ())}
    options = [
        _per_dimension(named[name], rank)
        for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    ]
    return _softmax_cells(z, tau, list(map(_padded_windows, sizes, *options)))


def softmax_over(z: Tensor, tau: float | Tensor, dims: list[int]) -> Pullback:
    """Spread the cotangent, which has size 1 in `dims`, over these by softmax(z / tau)."""
    powers = torch.exp((z - z.amax(dims, keepdim=True)) / tau)
    weights = powers / powers.sum(dims, keepdim=True)
    return lambda cotangent: weights * cotangent


def shared(z: Tensor, dims: list[int]) -> Pullback:
    """Share the cotangent, which has size 1 in `dims`, among the largest numbers: what amax does."""
    largest = (z == z.amax(dims, keepdim=True)).to(z.dtype)
    return lambda cotangent: cotangent * largest / largest.sum(dims, keepdim=True)


def _held_glu(x: Tensor, tau: float | Tensor, dim: int = -1, **_: Any) -> Pullback:
    """Let the first half carry the cotangent through the gate, the second half, which is the gate, none."""
    second = (x / tau).chunk(2, dim)[1]

    def pullback(cotangent: Tensor) -> Tensor:
        return torch.cat([cotangent * torch.sigmoid(second), torch.zeros_like(second)], dim)

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
    if enable_gqa:  # several heads of queries have one of keys and values
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    logits = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones_like(logits, dtype=torch.bool).tril()
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        logits = logits.masked_fill(~attn_mask, -math.inf) if is_bool else logits + attn_mask
    weights = torch.softmax(logits / tau, dim=-1)

    def pullback(cotangent: Tensor) -> Tensor:
        each = weights.transpose(-2, -1) @ cotangent
        if enable_gqa:
            each = each.reshape(*each.shape[:-3], value.shape[-3], -1, *each.shape[-2:]).sum(-3)
        return each.sum_to_size(value.shape)

    return pullback


# METHOD names relu, max_pool, silu, gelu, layer_norm, attention; of all others it says: write the activation
# as y = z * m(z) and soften m. ReLU6's m is a step at 0, softened to Phi, and high / z above high. A Hardtanh
# with low < 0 < high has m = 1 inside, high / z above, low / z below: no step, so m as it is. None: autograd.
_WITHOUT_TEMPERATURE = ("hardtanh", "layer_norm", "group_norm", "rms_norm")
RULES: dict[str, dict[str, Callable[..., Pullback] | None]] = {
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
    "max_pool": {"softmax": _softmax_windows},
    "layer_norm": {"frozen": _times(_frozen_scale)},
    "attention": {"value": _frozen_attention, "full": None},
    "glu": {"gate": _held_glu},
    **{
        kind: {rule: _times(factor) for rule, factor in rules.items()}
        for kind, rules in eager_gates.FACTORS.items()
    },
}


_MAX_POOL = ("max_pool", "input kernel_size stride padding dilation ceil_mode return_indices")
_ADAPTIVE_MAX_POOL = ("max_pool", "input output_size return_indices")
# The name of a call: the kind of its gate, and the names of the arguments that it takes by position.
_CALLS: dict[str, tuple[str, str]] = {
    "relu": ("relu", "input inplace"),
    "relu6": ("relu6", "input inplace"),
    "hardtanh": ("hardtanh", "input min_val max_val inplace"),
    "max_pool2d": _MAX_POOL,
    "max_pool2d_with_indices": _MAX_POOL,
    "max_pool1d": _MAX_POOL,
    "max_pool3d": _MAX_POOL,
    "max_pool3d_with_indices": _MAX_POOL,
    "adaptive_max_pool3d": _ADAPTIVE_MAX_POOL,
    "adaptive_max_pool3d_with_indices": _ADAPTIVE_MAX_POOL,
    "max_pool1d_with_indices": _MAX_POOL,
    "adaptive_max_pool1d": _ADAPTIVE_MAX_POOL,
    "adaptive_max_pool1d_with_indices": _ADAPTIVE_MAX_POOL,
    "adaptive_max_pool2d": _ADAPTIVE_MAX_POOL,
    "adaptive_max_pool2d_with_indices": _ADAPTIVE_MAX_POOL,
    "silu": ("silu", "input inplace"),
    "gelu": ("gelu", "input"),
    "layer_norm": ("layer_norm", "input normalized_shape weight bias eps cudnn_enable"),
    "scaled_dot_product_attention": ("attention", "query key value attn_mask dropout_p is_causal"),
    **eager_gates.CALLS,
}


def read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the kind of gate that a call is, with its arguments by name; None for any other call."""
    name = str(getattr(func, "__name__", "")).partition(".")[0].removesuffix("_")
    if name not in _CALLS:
        return None
    kind, names = _CALLS[name]
    arguments = {**dict(zip(names.split(), args, strict=False)), **kwargs}
    if kind == "hardtanh":
        low, high = arguments.get("min_val", -1), arguments.get("max_val", 1)
        if low > 0 or high <= 0:
            return None  # y = z * m(z) would need an infinite m at 0: a clamp, not a gate
        return "relu6" if low == 0 else "hardtanh", arguments
    if name == "leaky_relu" and arguments.get("negative_slope") == 0:
        return "relu", arguments
    if name == "rrelu":
        if arguments.get("training"):
            return None
        arguments["negative_slope"] = (arguments.get("lower", 1 / 8) + arguments.get("upper", 1 / 3)) / 2
    if kind in ("elu", "max_pool"):
        arguments["form"] = name
    if name == "instance_norm" and not arguments.get("use_input_stats", True):
        return None  # a batch norm under another name
    return kind, arguments
