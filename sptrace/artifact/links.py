"""What a network's outputs mean: from logits to probabilities. Torch-free, and the only place of that mathematics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sptrace.errors import SptraceError

LINKS = {
    "softmax": "logits of classes of which one is right; their softmax are the probabilities",
    "sigmoid": "logits that are each right or wrong; the sigmoid of each is its probability",
    "identity": "probabilities already",
    "none": "plain values, a regression's for instance",
}
"""What the outputs are, by the link from them to probabilities."""


TAKEN_OFF = {
    "softmax": "softmax",
    "log_softmax": "softmax",
    "sigmoid": "sigmoid",
    "logsigmoid": "sigmoid",
}
"""What a network may end in that the compiled program does not, and the link that is."""


def check_link(link: object, keep_link: object = False) -> None:
    """Refuse what is no link.

    Arguments:
        link: one of `LINKS`, or None.
        keep_link: is what the network ends in to be kept?

    Raises:
        SptraceError: they are something else.
    """
    if not (link is None or (isinstance(link, str) and link in LINKS)):
        raise SptraceError(f"there is no link {link!r}: use one of {', '.join(LINKS)}")
    if not isinstance(keep_link, bool):
        raise SptraceError(f"keep_link must be True or False, not {keep_link!r}")


@dataclass(frozen=True)
class Outputs:
    """What a network's outputs are.

    Arguments:
        link: one of `LINKS`.
        taken_off: which of `TAKEN_OFF` the network ended in; None if nothing was taken off.
        is_pair: does one output stand for two classes? Class 1 is the output, class 0 its negative.
    """

    link: str = "softmax"
    taken_off: str | None = None
    is_pair: bool = False


LOGITS = Outputs()
"""Logits of classes of which one is right, and nothing taken off."""


def is_pair(outputs: int, labels: Sequence[str] | None) -> bool:
    """Do these class names say that a network of so many outputs has one that stands for two classes?"""
    return outputs == 1 and labels is not None and len(labels) == 2


def scores(link: str, outputs: NDArray[np.float32], labels: Sequence[str] | None) -> NDArray[np.float32]:
    """What each class has in the order of classes, float32 [N, classes]: the outputs themselves, or a pair's.

    Arguments:
        link: one of `LINKS`.
        outputs: float32 [N, outputs].
        labels: names of the classes, or None.
    """
    if not is_pair(outputs.shape[1], labels):
        return outputs
    return np.concatenate([1 - outputs if link == "identity" else -outputs, outputs], axis=1)


def probabilities(
    link: str, outputs: NDArray[np.float32], labels: Sequence[str] | None
) -> NDArray[np.float32] | None:
    """Of the classes, float32 [N, classes]; None where outputs are plain values. Arguments as in `scores`."""
    if link == "none":
        return None
    of_classes = scores(link, outputs, labels)
    if link == "softmax":
        exponentials = np.exp(of_classes - of_classes.max(axis=1, keepdims=True))
        of_classes = exponentials / exponentials.sum(axis=1, keepdims=True)
    elif link == "sigmoid":
        of_classes = np.exp(-np.logaddexp(0, -of_classes))
    return np.asarray(of_classes, dtype=np.float32)
