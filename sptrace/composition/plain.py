"""The pullback itself, and its product with the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from sptrace.assemble import Assembled
from sptrace.composition.composer import Composer, aten


def itself(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """nu(x)."""
    composer = Composer(assembled)
    image, target = composer.image_and_target()
    attribution, logits, _ = composer.pull(image, target)
    return composer.outputs(attribution=attribution, logits=logits)


def input_times(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """x nu(x)."""
    composer = Composer(assembled)
    image, target = composer.image_and_target()
    attribution, logits, _ = composer.pull(image, target)
    return composer.outputs(attribution=composer.call(aten.mul.Tensor, image, attribution), logits=logits)
