"""Class names. Needs no torch."""

from __future__ import annotations

from importlib.resources import files

IMAGENET_CLASSES = 1000


def imagenet() -> tuple[str, ...]:
    """Read the names of the 1000 ImageNet classes, in the order every ImageNet-1k network uses.

    Source: `torchvision.models._meta._IMAGENET_CATEGORIES` (torchvision 0.29.1, BSD-3-Clause).
    """
    text = files("sptrace.models").joinpath("imagenet_classes.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def for_classes(classes: int) -> tuple[str, ...] | None:
    """Name the classes of a network that has so many: ImageNet's for 1000, else None."""
    return imagenet() if classes == IMAGENET_CLASSES else None
