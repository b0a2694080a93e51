"""The reference: the original network under autograd, with every gating call swapped for a softened twin.

An independent second implementation of Semantic Pullbacks (arXiv 2507.22832), against which compiled programs
are verified. It shares no code with the compiler, and is written to be read, not to be fast: nothing is
captured or rewritten. The network's own Python runs under a mode that sees its torch calls; a call that gates
keeps its value and has its backward replaced by the rule.

`reference.eager_rules` holds all there is to know of gates, `eager_mode` puts it to work.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

from sptrace.artifact.links import LOGITS, Outputs
from sptrace.compiler.capture.answers import logits_of
from sptrace.compiler.reference import eager_spellings
from sptrace.compiler.reference.eager_layout import Seen, look
from sptrace.compiler.reference.eager_link import WatchedEnd
from sptrace.compiler.reference.eager_mode import SoftenedGates
from sptrace.compiler.reference.eager_rules import Rule, Rules, check
from sptrace.compiler.reference.eager_scopes import Scopes

__all__ = ["Rule", "activation", "at_layer", "in_doubt", "measure", "reference", "seen"]


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
    outputs: Outputs = LOGITS,
    objective: str = "logit",
    layer: str | None = None,
    position: Sequence[int] | None = None,
    seen: Seen | None = None,
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
            A temperature (c, "std") is c times the standard deviation of the gate's input over its picture, (c, "rms")
            c times the root mean square of that input's positive part.

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
            "glu"          "gate"
            "layer_norm"   "frozen"             has no temperature
            "group_norm"   "frozen"             instance norm too; has no temperature
            "rms_norm"     "frozen"             has no temperature
            "attention"    "value", "full"      scaled_dot_product_attention, and a softmax that a product of
                                                matrices follows; "full" is autograd again
            =============  ===================  ==========================================================
        scales: what relative temperatures take in place of those scales of the picture: one number a gate, in the
            order of the calls, as `measure` gives them.
        mean: one value per channel, as `std`. When given, what the network sees is
            ((image - low) / (high - low) - mean) / std; when None, the image as it is.
        std: see `mean`; both or neither.
        input_range: (low, high), the values of black and white in `image`.
        outputs: what the network's outputs are; what is `taken_off` its end is neither in the logits nor in what is
            pulled back. Of a pair the target 1 (or -1) is the one logit, 0 its negative.
        objective: what is pulled back: the target's "logit", or its log-probability ("cross_entropy").
        layer: path of a module that is called once: explained are its channels, summed over space or tokens. None: the
            logits.
        position: row and column, or number of a token, in place of the sum.
        seen: how the layer's output is read, as `look` gives it.
        jitter: hard gates and maxima take their derivative at z + jitter * std(z) * noise, values stay. Repeated with
            several seeds this tells how far a gradient depends on gates that are closer to their threshold than that.
        seed: of the jitter's noise.

    Returns:
        attribution [N, C, H, W], logits [N, classes], and target [N] with every -1 resolved.

    Raises:
        ValueError: the module is in training mode, only one of mean and std is given, or a rule is unknown or
            lacks its temperature.
        UnsupportedError: a softened gate is called in a form that has no rule here.

    """
    with torch.enable_grad(), _frozen(module), allow_mutation_on_saved_tensors():
        leaf, logits, kept = _run(
            module, image, layer, rules, scales, mean, std, input_range, outputs, jitter, seed
        )
        values = logits if kept is None or seen is None else _summed(seen.channels_first(kept), position)
        resolved, direction = _directed(target, values, outputs.is_pair and kept is None)
        if objective == "cross_entropy":
            direction = _of_log_probability(direction, values.detach(), outputs.link)
        (attribution,) = torch.autograd.grad(values, leaf, direction)
    return attribution, logits.detach(), resolved


def at_layer(
    module: nn.Module,
    image: Tensor,
    target: Tensor,
    *,
    layer: str,
    seen: Seen,
    rules: Rules,
    scales: list[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
    outputs: Outputs = LOGITS,
    jitter: float = 0.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return a layer's output, and the target logit pulled back to it, as maps; arguments as of `reference`."""
    with torch.enable_grad(), _frozen(module), allow_mutation_on_saved_tensors():
        _, logits, kept = _run(
            module, image, layer, rules, scales, mean, std, input_range, outputs, jitter, seed
        )
        assert kept is not None
        (cotangent,) = torch.autograd.grad(logits, kept, _directed(target, logits, outputs.is_pair)[1])
    return seen.places(kept.detach()), seen.places(cotangent)


def activation(
    module: nn.Module,
    image: Tensor,
    *,
    layer: str,
    seen: Seen,
    position: Sequence[int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Tensor:
    """Return the layer's channels [N, C], at the position or summed; arguments as of `reference`."""
    with torch.enable_grad(), _frozen(module):
        _, _, kept = _run(module, image, layer, {}, None, mean, std, input_range, LOGITS, 0.0, 0)
        assert kept is not None
        return _summed(seen.channels_first(kept), position).detach()


def seen(
    module: nn.Module,
    image: Tensor,
    *,
    layer: str,
    channels: str | int | None = None,
    before: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
) -> Seen:
    """Find out how the layer's output is read; image [2, 3, H, W], the rest as of `look` and `reference`."""
    with torch.enable_grad(), _frozen(module):
        leaf = image.detach().requires_grad_()
        return look(module, leaf, _normalised(leaf, mean, std, input_range), layer, channels, before)


@torch.no_grad()
def in_doubt(
    module: nn.Module,
    image: Tensor,
    *,
    rules: Rules,
    scales: list[float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_range: tuple[float, float] = (-1.0, 1.0),
    jitter: float,
) -> Counter[tuple[str, str]]:
    """How many inputs of hard gates lie closer to their threshold than `jitter`, by (path of the module, kind).

    Arguments as of `reference`.
    """
    doubted: Counter[tuple[str, str]] = Counter()
    scopes = Scopes(len(image), scales)
    with SoftenedGates(rules, scopes, jitter, 0, doubted), scopes.following(module):
        module(_normalised(image, mean, std, input_range))
    return +doubted


def _run(
    module: nn.Module,
    image: Tensor,
    layer: str | None,
    rules: Rules,
    scales: list[float] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_range: tuple[float, float],
    outputs: Outputs,
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
        check(rules)
    scopes = Scopes(len(image), scales)
    leaf = image.detach().requires_grad_()
    pixels = _normalised(leaf, mean, std, input_range)
    kept: list[Tensor] = []

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        kept.append(output.clone())
        return kept[0].clone()  # what follows may work in place

    end = None if outputs.taken_off is None else WatchedEnd()
    hook = None if layer is None else module.get_submodule(layer).register_forward_hook(keep)
    try:
        with SoftenedGates(rules, scopes, jitter, seed), scopes.following(module), end or nullcontext():
            output = module(pixels)
    finally:
        if hook is not None:
            hook.remove()
    logits = logits_of(output)
    if end is not None and outputs.taken_off is not None:
        logits = end.before(logits, outputs.taken_off, len(image))
    if logits.ndim < 2:  # one output a picture; and squeeze() takes away a batch of one
        logits = logits.reshape(len(image), -1)
    return leaf, logits, kept[0] if kept else None


def _directed(target: Tensor, values: Tensor, is_pair: bool) -> tuple[Tensor, Tensor]:
    """Return the target with every -1 resolved, and the direction that it names; a direction is both itself."""
    if target.is_floating_point():
        return target, target
    if is_pair:
        resolved = target.abs()
        return resolved, (2.0 * resolved - 1).to(values.dtype)[:, None]
    resolved = torch.where(target == -1, values.argmax(1), target)
    return resolved, F.one_hot(resolved, values.shape[1]).to(values.dtype)


def _of_log_probability(direction: Tensor, values: Tensor, link: str) -> Tensor:
    """Turn the direction of a logit into that of the logarithm of its probability."""
    with torch.enable_grad():
        logits = values.clone().requires_grad_()
        if link == "softmax":
            log_probability = (direction * logits.log_softmax(1)).sum()
        else:
            log_probability = (
                direction.abs() * F.logsigmoid(torch.where(direction < 0, -logits, logits))
            ).sum()
        return torch.autograd.grad(log_probability, logits)[0]


def _summed(channels: Tensor, position: Sequence[int] | None) -> Tensor:
    """Return [N, C] of channels [N, C, ...], at the position or summed."""
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
    """The scale of the input of every gate with a relative temperature, in the order of the calls.

    Each is of one picture, averaged over the pictures; arguments as in `reference`.
    """
    measured = []
    for index in range(len(pictures)):  # alone, whatever dimension the network moves its pictures to
        scopes = Scopes(1)
        with SoftenedGates(rules, scopes), scopes.following(module):
            module(_normalised(pictures[index : index + 1], mean, std, input_range))
        measured.append(scopes.seen)
    return [float(torch.cat(column).mean()) for column in zip(*measured, strict=True)]


def _normalised(
    image: Tensor,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    input_range: tuple[float, float],
) -> Tensor:
    """What the network sees, marked as what gates depend on."""
    pixels = image.clone()  # a network may overwrite its input, autograd forbids that of a leaf
    if mean is not None and std is not None:
        low, high = input_range
        centre, scale = (image.new_tensor(values).view(1, -1, 1, 1) for values in (mean, std))
        pixels = ((pixels - low) / (high - low) - centre) / scale
    eager_spellings.mark(pixels)
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
