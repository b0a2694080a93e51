"""Which neuron is explained: data only, torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Neuron:
    """What a program pulls back.

    Arguments:
        layer: path of a module, as model.named_modules() gives it. Its channels are explained, summed over space or
            tokens. None: the network's classes.
        unit: the channel that a target of -1 stands for; None: the one with the largest value.
        position: row and column of a map, or number of a token, in place of the sum.
        direction: a direction given at run time is explained, in place of one class or channel.
        objective: the neuron itself ("logit"), or a class's log-probability ("cross_entropy").
    """

    layer: str | None = None
    unit: int | None = None
    position: tuple[int, ...] | None = None
    direction: bool = False
    objective: str = "logit"

    @staticmethod
    def of(settings: Mapping[str, Any]) -> Neuron:
        """The neuron that a program's settings name."""
        names = ("layer", "unit", "position", "direction", "objective")
        return Neuron(**{name: settings[name] for name in names if name in settings})

    @staticmethod
    def of_cam(settings: Mapping[str, Any]) -> Neuron:
        """The same of a class activation map, whose `layer` is where the map is taken."""
        return Neuron(direction=settings["direction"])


LOGIT = Neuron()
"""A class's logit, the predicted one's unless a target says otherwise."""
