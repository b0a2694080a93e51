"""The method in PyTorch as one would write it by hand: a network whose gates are softened in place, under autograd.

What `sptrace bench` measures artifacts against. Nothing in it is slow on purpose: gates that are modules are exchanged
for softened modules; only where a network also calls gates as functions does it run under a mode that catches those.
Parameters ask for no gradient, so that none is computed for weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sptrace.artifact.description import Preprocessing
from sptrace.artifact.noise import normal
from sptrace.artifact.softening import GateRule
from sptrace.bench import gates
from sptrace.errors import SptraceError

Rules = Mapping[str, GateRule]
Softened = Callable[..., Any]
Pull = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Answer = tuple[Tensor, Tensor]


class Peer:
    """A program in eager PyTorch.

    Arguments:
        network: in eval mode, on the CPU, float32 [N, 3, H, W] to logits [N, classes]. It is changed: its gates are
            exchanged in place.
        preprocessing: its mean, std and input_range.
        rules: rule and temperature of every kind of gate, as `Softening.gates` gives them; temperatures are numbers.
        program: a name of `PROGRAMS`.
        settings: all settings of the program.
        by_mode: does the network also call gates as functions? None: `calls_gates` is asked.

    Raises:
        SptraceError: the program cannot be had in eager PyTorch.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        rules: Rules,
        program: str = "soft_pullback",
        settings: Mapping[str, Any] | None = None,
        by_mode: bool | None = None,
    ) -> None:
        if program not in PROGRAMS:
            raise SptraceError(f"{program} was not written for this side: it has {', '.join(PROGRAMS)}")
        self._program = PROGRAMS[program]
        self._settings = dict(settings or {})
        self.limits = preprocessing.input_range
        functions = softened_functions(rules)
        # What a mode catches need not be exchanged, and exchanging it would only make the mode see it twice.
        if by_mode is None:
            by_mode = calls_gates(network, rules, preprocessing.size)
        attention = {hard: hard for hard in functions if hard is F.scaled_dot_product_attention}
        self.network = soften(network, attention if by_mode else functions)
        self._mode: AbstractContextManager[Any] = _SoftFunctions(functions) if by_mode else nullcontext()
        self._normalisation = _normalisation(preprocessing)
        self._compiled: Pull | None = None

    def __call__(self, image: Tensor, target: Tensor) -> Answer:
        """Explain image, float32 [N, 3, H, W], for target, int64 [N], 0 or more: attribution and logits."""
        return self._program(self, image, target, self._settings)

    def pull(self, image: Tensor, target: Tensor) -> Answer:
        """The pullback of the target's logit at the image, and the logits."""
        if self._compiled is not None:
            return self._compiled(image, target)
        return self._pull(image, target)

    def logits(self, image: Tensor) -> Tensor:
        """The network's answer, float32 [N, classes], without a pullback."""
        with torch.no_grad():
            return self._forward(image)

    def compile(self, *, whole: bool = True) -> None:
        """Have torch.compile make kernels of it at the first call.

        Arguments:
            whole: of forward and backward pass together, as one graph, which is faster; torch calls that experimental.
                Else of the network, whose backward pass torch then compiles by itself.
        """
        torch._dynamo.config.trace_autograd_ops = whole
        if whole:
            self._compiled = torch.compile(self._pull, fullgraph=True)
        else:
            self._compiled = None
            self.network.compile()

    def _pull(self, image: Tensor, target: Tensor) -> Answer:
        leaf = image.detach().requires_grad_()
        logits = self._forward(leaf)
        (attribution,) = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), leaf)
        return attribution, logits.detach()

    def _forward(self, image: Tensor) -> Tensor:
        if self._normalisation is not None:
            scale, shift = self._normalisation
            image = image * scale + shift
        with self._mode:
            logits: Tensor = self.network(image)
        return logits


def soften(network: nn.Module, functions: Mapping[Softened, Softened]) -> nn.Module:
    """The network, in which modules that gate are exchanged in place for some that call the softened functions."""
    network.requires_grad_(False)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            setattr(parent, name, _exchanged(child, functions))
    return _exchanged(network, functions)


def _exchanged(module: nn.Module, functions: Mapping[Softened, Softened]) -> nn.Module:
    if type(module) not in _EXCHANGES:
        return module
    hard, exchange = _EXCHANGES[type(module)]
    return exchange(module, functions[hard]) if hard in functions else module


def _normalisation(preprocessing: Preprocessing) -> tuple[Tensor, Tensor] | None:
    """((x - low) / (high - low) - mean) / std as x scale + shift, float32 [1, 3, 1, 1]."""
    if preprocessing.mean is None or preprocessing.std is None:
        return None
    low, high = preprocessing.input_range
    mean, std = (
        torch.tensor(numbers, dtype=torch.float64).view(1, 3, 1, 1)
        for numbers in (preprocessing.mean, preprocessing.std)
    )
    return (1 / ((high - low) * std)).float(), ((-low / (high - low) - mean) / std).float()


# --- Softened twins of the functions that gate ---


def softened_functions(rules: Rules) -> dict[Softened, Softened]:
    """For every function of torch.nn.functional that gates its softened twin; those left hard are left out."""
    makers: dict[str, Callable[[str, Any], dict[Softened, Softened]]] = {
        "relu": _relu,
        "relu6": _relu6,
        "silu": lambda rule, tau: {F.silu: lambda input, inplace=False: gates.silu(input, tau)},
        "gelu": lambda rule, tau: {
            F.gelu: lambda input, approximate="none": gates.gelu(input, tau, approximate)
        },
        "hardswish": lambda rule, tau: {
            F.hardswish: lambda input, inplace=False: gates.hardswish(input, tau)
        },
        "layer_norm": lambda rule, tau: {F.layer_norm: _layer_norm},
        "max_pool": _max_pool,
        "attention": _attention,
        **{kind: _others(kind) for kind in _OTHERS},
    }
    softened = {
        hard: soft
        for kind, make in makers.items()
        if rules[kind].rule not in ("hard", "full")
        for hard, soft in make(rules[kind].rule, rules[kind].tau).items()
    }
    return softened | {op: softened[hard] for op, hard in _OPS.items() if hard in softened}


_aten = torch.ops.aten
_OPS: Mapping[Softened, Softened] = {
    _aten.relu.default: F.relu,
    _aten.relu_.default: F.relu,
    _aten.hardtanh.default: F.hardtanh,
    _aten.hardtanh_.default: F.hardtanh,
    _aten.silu.default: F.silu,
    _aten.silu_.default: F.silu,
    _aten.gelu.default: F.gelu,
    _aten.hardswish.default: F.hardswish,
    _aten.hardswish_.default: F.hardswish,
    _aten.layer_norm.default: F.layer_norm,
    _aten.max_pool2d.default: F.max_pool2d,
    _aten.scaled_dot_product_attention.default: F.scaled_dot_product_attention,
}
"""What exported graphs call, and the function that it is."""


def _relu(rule: str, tau: Any) -> dict[Softened, Softened]:
    if rule == "guided":

        def soft(input: Tensor, inplace: bool = False) -> Any:
            return gates.guided_relu(input)

    else:
        gate = gates.sigmoid_relu if rule == "sigmoid" else gates.relu

        def soft(input: Tensor, inplace: bool = False) -> Any:
            return gate(input, tau)

    return dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_), soft)


def _relu6(rule: str, tau: Any) -> dict[Softened, Softened]:
    def soft(input: Tensor, inplace: bool = False) -> Any:
        if rule == "relu":
            return gates.scaled(input, F.relu6, lambda z: torch.special.ndtr(z / tau))
        return gates.relu6(input, tau, 6.0)

    def hardtanh(input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Any:
        if min_val == 0 and max_val == 6:
            return soft(input)
        return F.hardtanh(input, min_val, max_val)

    return {F.relu6: soft, F.hardtanh: hardtanh}


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    return gates.layer_norm(input, list(normalized_shape), weight, bias, eps)


def _max_pool(rule: str, tau: Any) -> dict[Softened, Softened]:
    def soft(
        input: Tensor,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        sizes = (kernel_size, stride or kernel_size, padding, dilation)
        pairs = [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]
        return gates.max_pool(input, tau, *pairs, ceil_mode)

    return {F.max_pool2d: soft, torch.max_pool2d: soft}


def _attention(rule: str, tau: Any) -> dict[Softened, Softened]:
    def soft(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Any:
        # Detached, so that autograd does not go on into what makes the attention matrix.
        return gates.attention(query.detach(), key.detach(), value, attn_mask, tau, is_causal, scale)

    softened: dict[Softened, Softened] = {F.scaled_dot_product_attention: soft}
    if tau == 1:
        softened |= {hard: _frozen_softmax(hard) for hard in (F.softmax, torch.softmax, Tensor.softmax)}
    return softened


def _frozen_softmax(hard: Softened) -> Softened:
    """Attention that is written out: at temperature 1 its matrix is the network's own, without a gradient.

    A softmax over the last of three axes or more is taken for one; those of channel attention are over others.
    """

    def soft(input: Tensor, dim: int | None = None, *args: Any, **kwargs: Any) -> Any:
        is_matrix = input.ndim > 2 and dim in (-1, input.ndim - 1)
        return hard(input.detach() if is_matrix else input, dim, *args, **kwargs)

    return soft


_OTHERS: Mapping[str, tuple[Softened, Softened]] = {
    "leaky_relu": (F.leaky_relu, gates.leaky_relu_factor),
    "elu": (F.elu, gates.elu_factor),
    "mish": (F.mish, gates.mish_factor),
    "softplus": (F.softplus, gates.softplus_factor),
    "group_norm": (F.group_norm, gates.group_norm_factor),
    "rms_norm": (F.rms_norm, gates.rms_norm_factor),
}
"""Rarer gates, and what the cotangent is multiplied by."""


def _others(kind: str) -> Callable[[str, Any], dict[Softened, Softened]]:
    def make(rule: str, tau: Any) -> dict[Softened, Softened]:
        hard, factor = _OTHERS[kind]

        def soft(input: Tensor, *args: Any, **kwargs: Any) -> Any:
            return gates.scaled(
                input, lambda z: hard(z, *args, **kwargs), lambda z: factor(z, tau, *args, **kwargs)
            )

        return {hard: soft}

    return make


# --- Modules that call them ---


class _Calling(nn.Module):
    """Calls a softened function with a module's settings."""

    def __init__(self, function: Softened, *settings: Any, **named: Any) -> None:
        super().__init__()
        self._function = function
        self._settings = settings
        self._named = named

    def forward(self, input: Tensor) -> Any:
        return self._function(input, *self._settings, **self._named)


class _Normalising(nn.Module):
    """A norm with its weights, whose forward is a softened function."""

    def __init__(self, norm: Any, soft: Softened, *settings: Any) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self._function, self._settings, self._eps = soft, settings, norm.eps

    def forward(self, input: Tensor) -> Any:
        return self._function(input, *self._settings, self.weight, self.bias, self._eps)


class _MultiheadAttention(nn.Module):
    """nn.MultiheadAttention with one width for query, key and value; gives no attention weights."""

    def __init__(self, module: nn.MultiheadAttention, soft: Softened) -> None:
        super().__init__()
        self.weight, self.bias, self.out = module.in_proj_weight, module.in_proj_bias, module.out_proj
        self.heads, self.batch_first, self._attention = module.num_heads, module.batch_first, soft

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False, **_: Any
    ) -> tuple[Tensor, None]:
        if not self.batch_first:
            query, key, value = (tokens.transpose(0, 1) for tokens in (query, key, value))
        if query is key and key is value:
            projected = F.linear(query, self.weight, self.bias).chunk(3, -1)
        else:
            biases = (None,) * 3 if self.bias is None else self.bias.chunk(3)
            projected = tuple(
                F.linear(tokens, weight, bias)
                for tokens, weight, bias in zip(
                    (query, key, value), self.weight.chunk(3), biases, strict=True
                )
            )
        heads = [tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2) for tokens in projected]
        mixed = self.out(self._attention(*heads).transpose(1, 2).flatten(2))
        return (mixed if self.batch_first else mixed.transpose(0, 1)), None


Exchange = tuple[Softened, Callable[[Any, Softened], nn.Module]]

_EXCHANGES: Mapping[type[nn.Module], Exchange] = {
    nn.ReLU: (F.relu, lambda module, soft: _Calling(soft)),
    nn.ReLU6: (F.relu6, lambda module, soft: _Calling(soft)),
    nn.SiLU: (F.silu, lambda module, soft: _Calling(soft)),
    nn.Hardswish: (F.hardswish, lambda module, soft: _Calling(soft)),
    nn.GELU: (F.gelu, lambda module, soft: _Calling(soft, approximate=module.approximate)),
    nn.MaxPool2d: (
        F.max_pool2d,
        lambda module, soft: _Calling(
            soft, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode
        ),
    ),
    nn.LayerNorm: (
        F.layer_norm,
        lambda module, soft: _Normalising(module, soft, module.normalized_shape),
    ),
    nn.GroupNorm: (F.group_norm, lambda module, soft: _Normalising(module, soft, module.num_groups)),
    nn.MultiheadAttention: (F.scaled_dot_product_attention, _MultiheadAttention),
}
"""For a type of module the function that gates in it, and what to put in its place."""


# --- Gates that are called as functions ---


class _SoftFunctions(TorchFunctionMode):
    """Calls softened twins in place of the functions that gate."""

    def __init__(self, functions: Mapping[Softened, Softened]) -> None:
        super().__init__()
        self._functions = functions

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return self._functions.get(func, func)(*args, **(kwargs or {}))


class _Calls(TorchFunctionMode):
    """Sees which functions are called, but for those that `unseen` calls."""

    def __init__(self) -> None:
        super().__init__()
        self.met: set[Softened] = set()
        self._depth = 0

    def unseen(self, func: Softened) -> Softened:
        """The function, not seen when it is called."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            try:
                return func(*args, **kwargs)
            finally:
                self._depth -= 1

        return call

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if self._depth == 0:
            self.met.add(func)
        return func(*args, **(kwargs or {}))


def calls_gates(network: nn.Module, rules: Rules, size: tuple[int, int]) -> bool:
    """Does the network call a gate other than by a module that can be exchanged? It is tried, and not changed."""
    functions = softened_functions(rules)
    calls = _Calls()
    exchanged = soften(copy.deepcopy(network), {hard: calls.unseen(hard) for hard in functions})
    with torch.no_grad(), calls:
        exchanged(torch.zeros(1, 3, *size))
    return not calls.met.isdisjoint(functions)


# --- Programs ---


def _plain(peer: Peer, image: Tensor, target: Tensor, settings: Mapping[str, Any]) -> Answer:
    return peer.pull(image, target)


def _input_times(peer: Peer, image: Tensor, target: Tensor, settings: Mapping[str, Any]) -> Answer:
    attribution, logits = peer.pull(image, target)
    return image * attribution, logits


def _double(peer: Peer, image: Tensor, target: Tensor, settings: Mapping[str, Any]) -> Answer:
    attribution, logits = peer.pull(image, target)
    return peer.pull(image + settings["alpha"] * attribution, target)[0], logits


def _ascent(peer: Peer, image: Tensor, target: Tensor, settings: Mapping[str, Any]) -> Answer:
    """Carries x_k - x_0, so that the difference keeps its digits."""
    moved, answers = torch.zeros_like(image), []
    for _ in range(settings["steps"]):
        attribution, logits = peer.pull(image + moved, target)
        answers.append(logits)
        length = torch.linalg.vector_norm(attribution, dim=(1, 2, 3), keepdim=True)
        moved = moved + settings["alpha"] * attribution / length
        if settings["epsilon"] is not None:
            away = torch.linalg.vector_norm(moved, dim=(1, 2, 3), keepdim=True)
            moved = moved * (settings["epsilon"] / away).clamp(max=1)
        if settings["clamp"] == "every":
            moved = (image + moved).clamp(*peer.limits) - image
    if settings["clamp"] == "last":
        moved = (image + moved).clamp(*peer.limits) - image
    return moved, answers[0]


def _smooth(peer: Peer, image: Tensor, target: Tensor, settings: Mapping[str, Any]) -> Answer:
    """With the noise of the artifact, which is made once."""
    total = torch.zeros_like(image)
    for noise in _noises(settings["samples"], tuple(image.shape[1:]), settings["seed"]):
        total += peer.pull(image + settings["sigma"] * noise, target)[0]
    return total / settings["samples"], peer.logits(image)


@cache
def _noises(samples: int, shape: tuple[int, ...], seed: int) -> list[Tensor]:
    return [torch.from_numpy(normal(draw, shape, seed)) for draw in range(samples)]


def _integrated(peer: Peer, image: Tensor, target: Tensor, settings: Mapping[str, Any]) -> Answer:
    way, samples = image - settings["baseline"], settings["samples"]
    total = torch.zeros_like(image)
    for index in range(samples):
        total += peer.pull(settings["baseline"] + way * ((index + 0.5) / samples), target)[0]
    return way * total / samples, peer.logits(image)


PROGRAMS: Mapping[str, Callable[[Peer, Tensor, Tensor, Mapping[str, Any]], Answer]] = {
    "soft_pullback": _plain,
    "gradient": _plain,
    "guided_backprop": _plain,
    "input_x_pullback": _input_times,
    "input_x_gradient": _input_times,
    "double_pullback": _double,
    "pullback_ascent": _ascent,
    "gradient_ascent": _ascent,
    "smooth_pullback": _smooth,
    "smoothgrad": _smooth,
    "integrated_pullback": _integrated,
    "integrated_gradients": _integrated,
}
"""The programs in eager PyTorch; the others have no peer."""
