"""The pullback itself, and its product with the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from sptrace.compiler.assemble import Assembled
from sptrace.compiler.composition.composer import Composer, aten


def itself(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """nu(x)."""
    composer = Composer(assembled)
    pulled = composer.pull(*composer.image_and_neuron())
    return composer.outputs(attribution=pulled.attribution, **pulled.answers)


def input_times(assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """x nu(x)."""
    composer = Composer(assembled)
    image, neuron = composer.image_and_neuron()
    pulled = composer.pull(image, neuron)
    product = composer.call(aten.mul.Tensor, image, pulled.attribution)
    return composer.outputs(attribution=product, **pulled.answers)
