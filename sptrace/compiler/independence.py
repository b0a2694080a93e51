"""Does what a network answers to a picture depend on the other pictures of its batch?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from sptrace.compiler.graph.builder import placeholder, value
from sptrace.errors import UnsupportedError

TOLERANCE = 1e-3
"""Of the largest logit. Far above rounding, which another batch size changes too."""


def require_independence(
    module: fx.GraphModule, limits: tuple[float, float], constants: Sequence[Tensor]
) -> None:
    """Refuse a network whose answer to a picture differs in the company of others, or of more.

    Arguments:
        module: image, float32 [N, 3, H, W], and `constants` to the logits [N, classes], alone or before a layer's.
        limits: the input's range.
        constants: what its further inputs stand for.

    Raises:
        UnsupportedError: it does.
    """
    sizes = value(placeholder(module.graph, "image")).shape[1:]
    low, high = limits
    drawn = torch.rand(3, *sizes, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    pictures = low + (high - low) * drawn
    with torch.no_grad():
        answers = [module(batch, *constants) for batch in (pictures[:2], pictures.flip(0))]
    two, three = (answer if isinstance(answer, Tensor) else answer[0] for answer in answers)
    if (two - three.flip(0)[:2]).abs().max() > TOLERANCE * two.abs().max():
        raise UnsupportedError(
            "the network's answer to a picture depends on the others of its batch, or on how many they are "
            "(a mean, norm or product over the batch): let it compute each picture by itself"
        )
