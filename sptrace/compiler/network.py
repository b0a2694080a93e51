"""The record that every source of networks gives."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sptrace.artifact.description import Preprocessing


@dataclass(frozen=True)
class Network:
    """A network ready to be compiled.

    Arguments:
        module: in eval mode; takes float32 [N, 3, H, W] normalised with `preprocessing.mean` and `.std`, gives
            logits [N, classes].
        name: as the user wrote it, for example "torchvision:resnet50".
        preprocessing: how a photograph becomes its input.
        labels: one name per class, or None.
        weights: where the weights came from, in words.
        link: what makes probabilities of its outputs, one of `links.LINKS`; None if its source does not know.
    """

    module: nn.Module
    name: str
    preprocessing: Preprocessing
    labels: tuple[str, ...] | None
    weights: str
    link: str | None = None
