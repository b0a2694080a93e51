"""Where a class activation map is taken if nobody says: the last layer whose map the logits depend on."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from sptrace.compiler.capture import from_torch, layers
from sptrace.compiler.objectives.layout import Layout, layout, places
from sptrace.errors import SptraceError

HANDFUL = 8
"""Layers with fewer channels are attention maps and the like; they are taken only where no layer has more."""


def choose(network: nn.Module, example: Tensor) -> tuple[fx.GraphModule, str, Layout]:
    """The graph captured with that layer, its path, and how its output is read.

    Of `layers.of_maps` it is the first whose channels and places are known, and whose places carry a gradient: that
    leaves out dead and auxiliary branches, and the last block of a transformer that goes on with its class token alone.

    Arguments:
        network: in eval mode.
        example: float32 [N, 3, H, W].

    Raises:
        SptraceError: there is none; the message names the layer that came closest.
        UnsupportedError: the network does not run, or cannot be captured.
    """
    complaint, narrow = "it has no layer whose output is a map", None
    for path in layers.of_maps(network, example):
        captured = from_torch.capture(network, example, path)
        try:
            how = layout(captured, path, None)
            require_places(how, path)
        except SptraceError as error:
            complaint = str(error)
            continue
        features, cotangent = _at_layer(captured, example)
        if not places(cotangent, how).any():
            complaint = f"the logits do not depend on the places of {path!r}"
        elif features.shape[how.channels] >= HANDFUL:
            return captured, path, how
        else:
            narrow = narrow or (captured, path, how)
    if narrow is None:
        raise SptraceError(
            f"say with layer= where the class activation map is to be taken, the network does not tell: {complaint}"
        )
    return narrow


def require_places(how: Layout, path: str) -> None:
    """Refuse a layer whose places make no map.

    Raises:
        SptraceError: says which layer, and why.
    """
    if not how.places:
        raise SptraceError(
            f"a class activation map needs a layer with places, {path!r} has none: choose another layer"
        )
    if len(how.places) == 1 and how.tokens is None:
        raise SptraceError(
            f"which tokens of {path!r} are places of the picture? The network does not tell: say prefix_tokens=, "
            "how many class tokens and the like come first, or choose another layer"
        )


def _at_layer(captured: fx.GraphModule, example: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's output, and the cotangent there of all logits in random proportions."""
    with torch.enable_grad():
        logits, features = captured(example[:1].clone().requires_grad_())
        proportions = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) + 0.5
        (cotangent,) = torch.autograd.grad((logits * proportions).sum(), features, allow_unused=True)
    return features, torch.zeros_like(features) if cotangent is None else cotangent
