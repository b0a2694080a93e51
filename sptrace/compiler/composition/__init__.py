"""Programs as compositions over the one pullback graph: one function a program, none of them a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import fx

from sptrace import passes
from sptrace.compiler.assemble import Assembled
from sptrace.compiler.composition import ascent, averages, cams, fusion, plain
from sptrace.compiler.graph.loop import Loop

Build = Callable[[Assembled, Mapping[str, Any]], fx.GraphModule]

BUILDERS: Mapping[str, Build] = MappingProxyType(
    {
        "soft_pullback": plain.itself,
        "gradient": plain.itself,
        "guided_backprop": plain.itself,
        "input_x_pullback": plain.input_times,
        "input_x_gradient": plain.input_times,
        "double_pullback": ascent.double,
        "pullback_ascent": ascent.ascend,
        "gradient_ascent": ascent.ascend,
        "smooth_pullback": averages.smooth,
        "smoothgrad": averages.smooth,
        "fusion_pullback": fusion.fuse,
        "fusiongrad": fusion.fuse,
        "integrated_pullback": averages.integrated,
        "integrated_gradients": averages.integrated,
        "gradcam": cams.gradcam,
        "guided_gradcam": cams.guided,
        "guided_pullback_cam": cams.guided,
    }
)
"""Program -> function of the assembled pullback and the program's settings (see `artifact.programs.PROGRAMS`)."""


def compose(program: str, assembled: Assembled, settings: Mapping[str, Any]) -> fx.GraphModule:
    """The program as one graph module: inputs image, target and those settings that can be given at run time.

    Arguments:
        program: a name of `BUILDERS`.
        assembled: the pullback, whose constants the result shares.
        settings: all settings of the program.

    Returns:
        Outputs: attribution, of the image's shape; logits [N, classes] of the image; what else the program defines.
    """
    module = BUILDERS[program](assembled, settings)
    for loop in [child for child in module.modules() if isinstance(child, Loop)]:
        passes.run(passes.TIDY, loop.body)
    passes.run(passes.TIDY, module)
    return module


__all__ = ["BUILDERS", "ascent", "averages", "cams", "compose", "fusion", "plain"]
