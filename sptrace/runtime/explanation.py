"""What an artifact answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sptrace.artifact import links
from sptrace.errors import SptraceWarning

Target = int | str | Sequence[int | str] | NDArray[np.integer[Any]] | None
"""What is explained: the index or the name of a class, for all images or one per image; None for the predicted one."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The answer of an artifact.

    Arguments:
        attribution: float32 [N, 3, H, W]; what `image` contributes, in the units of the program.
        logits: float32 [N, classes].
        target: int64 [N], the class or channel that was explained; None for a direction.
        labels: one name per class, or None.
        image_out: float32 [N, 3, H, W], the picture that an ascent arrives at; None for other programs.
        activation: float32 [N, channels] of the layer whose channels are explained; None where classes are.
        logits_out: float32 [N, classes] of `image_out`; None if the artifact does not give them.
        overlay: uint8 [N, H, W, 3], the explanation drawn over the photograph; None if the artifact does not draw it.
        link: what makes probabilities of the logits, one of `sptrace.artifact.links.LINKS`.
    """

    attribution: NDArray[np.float32]
    logits: NDArray[np.float32]
    target: NDArray[np.int64] | None
    labels: tuple[str, ...] | None
    image_out: NDArray[np.float32] | None = None
    activation: NDArray[np.float32] | None = None
    logits_out: NDArray[np.float32] | None = None
    overlay: NDArray[np.uint8] | None = None
    link: str = "softmax"

    @property
    def scores(self) -> NDArray[np.float32]:
        """What each class has, float32 [N, classes]: the logits, or of one logit for two its negative and itself."""
        return links.scores(self.link, self.logits, self.labels)

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """What the link makes of the logits, float32 [N, classes]; None where they are plain values."""
        return links.probabilities(self.link, self.logits, self.labels)

    @property
    def scores_out(self) -> NDArray[np.float32] | None:
        """`scores` of `image_out`; None if its logits are not given."""
        return None if self.logits_out is None else links.scores(self.link, self.logits_out, self.labels)

    @property
    def probabilities_out(self) -> NDArray[np.float32] | None:
        """`probabilities` of `image_out`; None if its logits are not given."""
        return (
            None if self.logits_out is None else links.probabilities(self.link, self.logits_out, self.labels)
        )

    def label(self, sample: int = 0) -> str:
        """Name of what was explained in a sample: a class, "class 7" if it has no name, "channel 7", "direction".

        An output that is a plain value, and has no name, is "output 7".
        """
        if self.target is None:
            return "direction"
        index = int(self.target[sample])
        if self.activation is not None:
            return f"channel {index}"
        unnamed = "output" if self.link == "none" else "class"
        return self.labels[index] if self.labels else f"{unnamed} {index}"


def warn_undefined(explanation: Explanation) -> None:
    """Say so where there is no explanation."""
    finite = np.isfinite(explanation.attribution).all(axis=(1, 2, 3))
    if not finite.all():
        listed = ", ".join(map(str, np.flatnonzero(~finite)[:9]))
        warnings.warn(
            f"the attribution of picture {listed} is NaN or infinite: something in the network has no derivative "
            "there, as a root has none at 0, in PyTorch neither",
            SptraceWarning,
            stacklevel=4,
        )
