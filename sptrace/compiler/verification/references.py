"""What eager PyTorch answers about pictures, and how far it is to be trusted there."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sptrace.compiler.reference.eager_explainer import Eager
from sptrace.compiler.verification.distances import Distance, Numbers

DOUBTS = 6
"""How often the reference is repeated: a gate in doubt stays on its side every time with probability 1/64."""


@dataclass(frozen=True)
class Reference:
    """The eager program on pictures of one origin.

    Arguments:
        eager: the program.
        name: of the pictures, for messages.
        images: float32 [N, 3, H, W].
        explained: what is explained of them: classes, int64 [N], or directions.
        of_a_layer: has the program an output `activation`?
        jitter: how close to its threshold a hard gate is in doubt; None: no gate is hard.
    """

    eager: Eager
    name: str
    images: Tensor
    explained: Tensor
    of_a_layer: bool
    jitter: float | None

    @cached_property
    def answers(self) -> dict[str, Numbers]:
        """By the names of the outputs."""
        return self._of(self.images)

    def again(self) -> dict[str, Numbers]:
        """The answers, computed once more."""
        return self._of(self.images)

    def beside(self, share: float) -> dict[str, Numbers]:
        """The answers where the pictures are changed by that share of what rounding is relative to.

        That is the input's range where the program maps it to [0, 1] first, else the picture's own largest value.
        """
        how = self.eager.preprocessing
        span = torch.full_like(self.images[:, :1, :1, :1], how.input_range[1] - how.input_range[0])
        if how.mean is None:
            largest = self.images.abs().amax((1, 2, 3), keepdim=True)
            span = torch.where(largest > 0, largest, span)
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(self.images.shape, generator=generator, dtype=self.images.dtype)
        return self._of(self.images + share * span * noise)

    def in_double(self) -> dict[str, Numbers] | None:
        """The answers in float64; None where the network computes in nothing but float32."""
        with torch.no_grad():
            double = replace(self.eager, network=copy.deepcopy(self.eager.network).double())
        explained = self.explained.double() if self.explained.is_floating_point() else self.explained
        try:
            return replace(self, eager=double, images=self.images.double(), explained=explained).answers
        except (RuntimeError, TypeError, ValueError):  # what PyTorch raises where types do not fit
            return None

    def _of(self, images: Tensor) -> dict[str, Numbers]:
        attribution, logits = self.eager(images, self.explained)
        answers = {"attribution": attribution.numpy(), "logits": logits.numpy()}
        if self.of_a_layer:
            answers["activation"] = self.eager.activation(images).numpy()
        return answers

    def doubt(self, measure: Distance) -> NDArray[np.float64]:
        """How far its attributions move when gates in doubt are thrown to either side, float64 [N]."""
        distances = [measure(thrown, self.answers["attribution"]) for thrown in self._thrown]
        return np.max(distances, axis=0) if distances else np.zeros(len(self.images))

    @cached_property
    def _thrown(self) -> list[Numbers]:
        if self.jitter is None:
            return []
        return [
            self.eager(self.images, self.explained, self.jitter, seed)[0].numpy() for seed in range(DOUBTS)
        ]

    def gates_in_doubt(self) -> str:
        """Number, module paths and kinds of the inputs of hard gates that float32 cannot decide."""
        assert self.jitter is not None
        gates = self.eager.in_doubt(self.images, self.jitter).most_common()
        named = [f"{count} {kind} in {path or 'the top level'}" for (path, kind), count in gates[:3]]
        others = sum(count for _, count in gates[3:])
        listed = ", ".join([*named, *([f"{others} elsewhere"] if others else [])])
        return f"{sum(count for _, count in gates)} of the hard gates' inputs ({listed})"
