"""How the reference reads a layer's output: it runs the network, and asks autograd which numbers belong together.

Like `reference.eager` this shares no code with the compiler.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

# The dimension of the channels in what each of these takes and gives.
_CHANNELS: Mapping[Any, int] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, F.conv_transpose2d), 1),
    **dict.fromkeys((F.batch_norm, F.group_norm, F.instance_norm), 1),
    **dict.fromkeys((F.linear, F.layer_norm, F.rms_norm, F.multi_head_attention_forward), -1),
}
_NEAREST = 8  # calls on either side of the layer are asked


@dataclass(frozen=True)
class Seen:
    """How a layer's output is read.

    Arguments:
        channels: the dimension of its channels; None: calls nearby do not tell, or contradict each other.
        before: of tokens, how many come before those of the picture; None: not known.
        grid: rows and columns of those.
    """

    channels: int | None
    before: int | None = None
    grid: tuple[int, int] | None = None

    def channels_first(self, output: Tensor) -> Tensor:
        """A layer's output, or its cotangent, as [N, C, rows, columns], [N, C, tokens] or [N, C]."""
        assert self.channels is not None
        return output.movedim(self.channels, 1)

    def places(self, output: Tensor) -> Tensor:
        """The same with those tokens that are places of the picture as a map."""
        channels = self.channels_first(output)
        if channels.ndim != 3:
            return channels
        assert self.before is not None
        assert self.grid is not None
        rows, columns = self.grid
        return channels[:, :, self.before : self.before + rows * columns].reshape(
            *channels.shape[:2], rows, columns
        )


class _Calls(TorchFunctionMode):
    """Keeps what every call of `_CHANNELS` takes and gives, in their order, with the dimension of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor, int]] = []

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func in _CHANNELS and args:
            self.calls.append((args[0], answer[0] if isinstance(answer, tuple) else answer, _CHANNELS[func]))
        return answer


def look(
    module: nn.Module,
    image: Tensor,
    pixels: Tensor,
    layer: str,
    channels: str | int | None,
    before: int | None,
) -> Seen:
    """Run the network on two pictures and find out.

    Arguments:
        module: in eval mode; its parameters ask for no gradient.
        image: [2, 3, H, W], a leaf that asks for its gradient.
        pixels: the same normalised: what the network takes.
        layer: path of a module that is called once and gives a tensor.
        channels: what the user says of it: "first", "last" or the dimension.
        before: what the user says of tokens.
    """
    kept: list[Tensor] = []
    calls = _Calls()
    place = 0

    def keep(layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        nonlocal place
        place = len(calls.calls)
        kept.append(output.clone())
        return kept[0].clone()

    hook = module.get_submodule(layer).register_forward_hook(keep)
    try:
        with calls:
            module(pixels)
    finally:
        hook.remove()
    (output,) = kept
    last = output.ndim - 1
    if last == 1:
        return Seen(1)
    if channels is None:
        dim = _channels(output, calls.calls[:place][::-1], calls.calls[place:])
    else:
        dim = {"first": 1, "last": last}.get(channels, channels)  # type: ignore[arg-type]
    if last != 2 or dim is None:
        return Seen(dim)
    tokens = output.shape[3 - dim]
    if before is None:
        return Seen(dim, *_tokens(tokens, calls.calls[:place], image))
    return Seen(dim, before, _grid(tokens - before, image))


def _channels(
    output: Tensor, earlier: Sequence[tuple[Any, ...]], later: Sequence[tuple[Any, ...]]
) -> int | None:
    """The dimension of which one index goes with one channel of the nearest call before, and of that after."""
    verdicts = set()
    for calls, ask in ((earlier, _made), (later, _read)):
        asked = 0
        for taken, given, axis in calls:
            dims = ask(output, taken, given, axis)
            asked += dims is not None
            if dims and len(dims) == 1:
                verdicts |= set(dims)
                break
            if asked == _NEAREST:
                break
    return verdicts.pop() if len(verdicts) == 1 else None


def _read(output: Tensor, taken: Tensor, given: Tensor, axis: int) -> list[int] | None:
    """Dimensions of the output of which one index alone goes to one channel of what a call takes; None: none goes."""
    if not taken.requires_grad:
        return None
    gradient = _gradient(_strongest(taken, axis), output)
    return None if gradient is None else [dim for dim in range(1, output.ndim) if _is_one(gradient, dim)]


def _made(output: Tensor, taken: Tensor, given: Tensor, axis: int) -> list[int] | None:
    """Dimensions of the output of which one index comes from one channel alone of what a call gives."""
    if not given.requires_grad:
        return None
    dims = []
    for dim in range(1, output.ndim):
        gradient = _gradient(_strongest(output, dim), given)
        if gradient is None:
            return None
        if output.shape[dim] > 1 and _is_one(gradient, axis):
            dims.append(dim)
    return dims


def _strongest(tensor: Tensor, dim: int) -> Tensor:
    """The part of a tensor at that index of a dimension where its numbers are largest."""
    sizes = tensor.detach().abs().movedim(dim, 0).flatten(1).sum(1)
    return tensor.select(dim, int(sizes.argmax()))


def _gradient(part: Tensor, of: Tensor) -> Tensor | None:
    return torch.autograd.grad(part.sum(), of, retain_graph=True, allow_unused=True)[0]


def _is_one(gradient: Tensor, dim: int) -> bool:
    """Is it 0 but at one index of the dimension, of several?"""
    there = gradient.movedim(dim, 0).flatten(1).ne(0).any(1)
    return len(there) > 1 and int(there.sum()) == 1


def _tokens(
    count: int, calls: Sequence[tuple[Any, ...]], image: Tensor
) -> tuple[int, tuple[int, int]] | tuple[None, None]:
    """How many tokens do not depend on the picture where so many are first met, and the grid of the others."""
    for taken, _, axis in calls:
        if taken.ndim != 3 or not taken.requires_grad:
            continue
        tokens = taken.movedim(axis, 2)
        if tokens.shape[:2] != (2, count):
            continue
        there = (tokens[0] != tokens[1]).any(1)
        before, seen = int(there.int().argmax()), int(there.sum())
        grid = _grid(seen, image)
        if grid is None or not bool(there[before : before + seen].all()):
            return None, None
        return (before, grid) if _goes_row_by_row(tokens, before, grid, image) else (None, None)
    return None, None


def _grid(count: int, image: Tensor) -> tuple[int, int] | None:
    """Rows and columns of so many places in the proportions of the image."""
    height, width = image.shape[2:]
    rows = round(math.sqrt(max(count, 0) * height / width))
    return (
        (rows, count // rows)
        if rows and count % rows == 0 and rows * width == count // rows * height
        else None
    )


def _goes_row_by_row(tokens: Tensor, before: int, grid: tuple[int, int], image: Tensor) -> bool:
    """Do the last token of the first row and the first of the last look at those corners?"""
    rows, columns = grid
    for row, column in ((0, columns - 1), (rows - 1, 0)):
        part = tokens[:, before + row * columns + column]
        weights = torch.rand(part.shape, generator=torch.Generator().manual_seed(0), dtype=part.dtype)
        gradient = _gradient(part * weights, image)
        if gradient is None:
            return False
        mass = gradient.abs().sum((0, 1))
        for given, index, size in ((mass.sum(1), row, rows), (mass.sum(0), column, columns)):
            centre = float((given * torch.arange(len(given))).sum() / given.sum()) / (len(given) - 1)
            if size > 1 and (centre > 0.5) != (index > 0):
                return False
    return True
