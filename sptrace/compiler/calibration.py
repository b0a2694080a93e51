"""Relative temperatures measured once, when compiling: at run time they then cost nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from sptrace.artifact.description import LayerScale
from sptrace.artifact.softening import Relative
from sptrace.compiler.graph.builder import is_batch
from sptrace.compiler.graph.facts import facts
from sptrace.compiler.pullback.temperature import SMALLEST

CHUNK = 8
"""Pictures at a time."""


@torch.no_grad()
def calibrate(
    module: fx.GraphModule, pictures: Tensor, parameters: Iterable[str] = ()
) -> tuple[LayerScale, ...]:
    """Turn every relative temperature into a fixed one: its factor times the scale of the gate's input.

    The scale is that of `Relative` for one picture, averaged over the pictures (METHOD: beyond the paper), but at least
    `SMALLEST`, as where each picture is measured.

    Arguments:
        module: softened; its inputs are the image, and parameters where they were lifted.
        pictures: float32 [M, 3, H, W] in the input's range.
        parameters: paths of the constants that those inputs stand for.

    Returns:
        What was measured, in the order of the graph.
    """
    totals: dict[fx.Node, float] = {}
    constants = [module.get_buffer(path) for path in parameters]
    chunk = CHUNK if all(map(_has_pictures_first, module.graph.nodes)) else 1
    for first in range(0, len(pictures), chunk):
        _Measure(module, totals).run(pictures[first : first + chunk], *constants)
    scales = {node: total / len(pictures) for node, total in totals.items()}
    for node, scale in scales.items():
        node.kwargs = {**node.kwargs, "tau": node.kwargs["tau"].factor * scale}  # type: ignore[union-attr]
    module.recompile()
    return tuple(LayerScale(str(facts(node).path), scale) for node, scale in scales.items())


def _has_pictures_first(node: fx.Node) -> bool:
    """Is each row of what a relative gate sees a picture? Of several rows nobody knows in which order they lie."""
    return not isinstance(node.kwargs.get("tau"), Relative) or is_batch(node.all_input_nodes[0], 0)


class _Measure(fx.Interpreter):
    """Runs the graph and adds up, over the pictures, the scales of what its relative gates see."""

    def __init__(self, module: fx.GraphModule, totals: dict[fx.Node, float]) -> None:
        super().__init__(module)
        self.totals = totals
        self.pictures = 0

    def run(self, image: Tensor, *parameters: Tensor) -> Any:  # type: ignore[override]  # of less it knows nothing
        """Measure the layers for image, float32 [N, 3, H, W]."""
        self.pictures = len(image)
        return super().run(image, *parameters)

    def run_node(self, node: fx.Node) -> Any:
        """Run it; first measure its input if its temperature is relative."""
        tau = node.kwargs.get("tau")
        if isinstance(tau, Relative):
            z = self.env[node.args[0]]  # type: ignore[index]
            rows = z.reshape(self.pictures, -1)
            scales = (
                rows.std(1, correction=0) if tau.unit == "std" else rows.clamp(min=0).square().mean(1).sqrt()
            )
            self.totals[node] = self.totals.get(node, 0.0) + float(scales.clamp(min=SMALLEST).sum())
        return super().run_node(node)
