"""A network and what is to be explained of it, in eager PyTorch: what an artifact's answers are compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from sptrace.artifact.description import Preprocessing
from sptrace.artifact.links import LOGITS, Outputs
from sptrace.artifact.programs import program_kind
from sptrace.artifact.softening import Softening
from sptrace.compiler.reference.eager import Rule, activation, at_layer, in_doubt, measure, reference, seen
from sptrace.compiler.reference.eager_layout import Seen
from sptrace.compiler.reference.eager_programs import EAGER, noisy_weights

Answer = TypeVar("Answer", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Eager:
    """The program in eager PyTorch: called with image and target, answers attribution and logits.

    Arguments:
        program, settings: the program and all its settings.
        network: the original module, which is not changed.
        preprocessing: its mean, std and input_range.
        softening: rules and temperatures.
        calibration: pictures on which relative temperatures are fixed, float32 [M, 3, H, W]; None: they are not.
        outputs: what the network's outputs are, and what is taken off its end.
    """

    program: str
    settings: Mapping[str, Any]
    network: torch.nn.Module
    preprocessing: Preprocessing
    softening: Softening
    calibration: Tensor | None = None
    outputs: Outputs = LOGITS

    @cached_property
    def scales(self) -> list[float] | None:
        """What relative temperatures refer to, where they are fixed."""
        if self.calibration is None:
            return None
        return measure(self.network, self.calibration, rules=self.softening.gates, **self.normalisation())

    @cached_property
    def seen(self) -> Seen | None:
        """How the output of the settings' layer is read; None if there is no layer."""
        if self.settings["layer"] is None:
            return None
        low, high = self.preprocessing.input_range
        pictures = torch.rand(2, 3, *self.preprocessing.size, generator=torch.Generator().manual_seed(0))
        return seen(
            self.network,
            low + (high - low) * pictures,
            layer=self.settings["layer"],
            channels=self.settings["channels"],
            before=self.settings.get("prefix_tokens"),
            **self.normalisation(),
        )

    def __call__(
        self, image: Tensor, target: Tensor, jitter: float = 0.0, seed: int = 0
    ) -> tuple[Tensor, Tensor]:
        """Explain image, float32 [N, 3, H, W], for target, int64 [N], or a direction; the rest as in `reference`."""
        pull = _Pull(self, jitter, seed)
        return EAGER[self.program](pull, image, target, self.settings, self.preprocessing.input_range)

    @cached_property
    def _varied(self) -> dict[int, torch.nn.Module]:
        return {}

    def with_noisy_weights(self, draw: int, sigma: float, seed: int) -> Eager:
        """The same with weights that noise was put on; relative temperatures stay what they are."""
        if draw not in self._varied:
            self._varied[draw] = noisy_weights(self.network, draw, sigma, seed)
        varied = replace(self, network=self._varied[draw])
        varied.__dict__.update(scales=self.scales, seen=self.seen)
        return varied

    def activation(self, image: Tensor) -> Tensor:
        """What a target chooses from if there is a layer, float32 [N, channels]."""
        assert self.seen is not None
        return activation(
            self.network,
            image,
            layer=self.settings["layer"],
            seen=self.seen,
            position=self.settings["position"],
            **self.normalisation(),
        )

    def logits(self, image: Tensor) -> Tensor:
        """The network's own, float32 [N, classes]."""
        target = torch.zeros(len(image), dtype=torch.int64)
        return reference(self.network, image, target, rules={}, outputs=self.outputs, **self.normalisation())[
            1
        ]

    def in_doubt(self, image: Tensor, jitter: float) -> Counter[tuple[str, str]]:
        """How many inputs of hard gates are in doubt, by (path of the module, kind)."""
        return in_doubt(
            self.network,
            image,
            rules=self.softening.gates,
            scales=self.scales,
            jitter=jitter,
            **self.normalisation(),
        )

    def normalisation(self) -> dict[str, Any]:
        """What the reference needs to know of the preprocessing."""
        how = self.preprocessing
        return {"mean": how.mean, "std": how.std, "input_range": how.input_range}


@dataclass(frozen=True)
class _Pull:
    """The pullback of `Eager`, with hard gates jittered; see `reference.eager_programs.Pull`."""

    eager: Eager
    jitter: float
    seed: int

    def __call__(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        eager, settings = self.eager, self.eager.settings
        is_cam = program_kind(eager.program).is_cam
        answer: tuple[Tensor, Tensor, Tensor] = _at_once(
            reference,
            eager.network,
            image,
            target,
            rules=eager.softening.gates,
            scales=eager.scales,
            outputs=eager.outputs,
            objective=settings.get("objective", "logit"),
            layer=None if is_cam else settings["layer"],
            position=settings.get("position"),
            seen=eager.seen,
            jitter=self.jitter,
            seed=self.seed,
            **eager.normalisation(),
        )
        return answer

    def with_noisy_weights(self, draw: int, sigma: float, seed: int) -> _Pull:
        return replace(self, eager=self.eager.with_noisy_weights(draw, sigma, seed))

    def at_layer(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        def rules(path: str) -> dict[str, Rule]:
            return {
                kind: ("hard", None) if rule == "guided" else (rule, tau)
                for kind, (rule, tau) in self.eager.softening.gates(path).items()
            }

        assert self.eager.seen is not None
        answer: tuple[Tensor, Tensor] = _at_once(
            at_layer,
            self.eager.network,
            image,
            target,
            layer=self.eager.settings["layer"],
            seen=self.eager.seen,
            rules=rules,
            scales=self.eager.scales,
            outputs=self.eager.outputs,
            jitter=self.jitter,
            seed=self.seed,
            **self.eager.normalisation(),
        )
        return answer


def _at_once(
    explain: Callable[..., Answer],
    network: torch.nn.Module,
    image: Tensor,
    target: Tensor,
    **how: Any,
) -> Answer:
    """What `explain` gives. A network that drops a batch of one (`squeeze`) gets its one picture twice."""
    try:
        given = explain(network, image, target, **how)
        if len(image) != 1 or len(given[1]) == 1:
            return given
    except (IndexError, RuntimeError, ValueError):  # what PyTorch raises where a dimension is missing
        if len(image) != 1:
            raise
    twice = explain(network, torch.cat([image] * 2), torch.cat([target] * 2), **how)
    return type(twice)(part[:1] for part in twice)
