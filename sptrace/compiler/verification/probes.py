"""Pictures of the compiler's own, which tell right from wrong where the user's example, ones or zeros, does not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def own_pictures(count: int, size: tuple[int, int], input_range: tuple[float, float]) -> Tensor:
    """Noise with as much in every octave, as photographs have it, from black to white; the same everywhere.

    No two numbers are alike in it, so that gates and maxima behind it are seldom in doubt.

    Arguments:
        count: how many pictures; each is another one.
        size: height and width.
        input_range: the values of black and white.

    Returns:
        float32 [count, 3, height, width].
    """
    generator = torch.Generator().manual_seed(20)
    height, width = size
    low, high = input_range
    pictures = torch.zeros(count, 3, height, width, dtype=torch.float32)
    cells = max(size)
    while cells >= 1:
        coarse = [max(1, -(-length // cells)) for length in size]
        noise = torch.randn(count, 3, *coarse, generator=generator, dtype=torch.float32)
        pictures += F.interpolate(noise, size, mode="bilinear", align_corners=False)
        cells //= 2
    least, most = (bound(pictures, (1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    span = torch.where(most > least, most - least, 1.0)
    return (low + (high - low) * (pictures - least) / span).clamp(low, high)
