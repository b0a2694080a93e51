"""Checks of what an artifact is given as `image`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError

ROUNDING = 1e-3
"""How far beyond black and white a pixel may be, as a share of the range: what resizing and half precision leave."""

THINNEST = 100
"""How many times as long as wide a photograph may be."""


def checked(image: NDArray[Any], how: Preprocessing, kind: str, batch: int | None) -> NDArray[Any]:
    """The image, contiguous, in the dtype and shape that the artifact takes.

    Arguments:
        image: what a caller gave.
        how: the artifact's preprocessing.
        kind: "float32" or "uint8", the artifact's input.
        batch: how many images it must be; None for any number.

    Raises:
        SptraceError: it is something else.
    """
    image = _array(image)
    checked = _pixels(image, how) if kind == "uint8" else _prepared(image, how)
    if batch is not None and len(image) != batch:
        raise SptraceError(
            f"{len(image)} images where the artifact was loaded for {batch}: load it without batch="
        )
    return checked


def outside(image: NDArray[Any], input_range: tuple[float, float]) -> str | None:
    """Say which values a picture holds, if some of them are none of a picture; None if all are, but for rounding.

    Arguments:
        image: floating point, finite.
        input_range: the values of black and white.
    """
    (low, high), (smallest, largest) = input_range, (float(image.min()), float(image.max()))
    margin = ROUNDING * (high - low)
    if low - margin <= smallest and largest <= high + margin:
        return None
    return f"values from {smallest:.4g} to {largest:.4g}, outside of input_range, {low:g} to {high:g}"


def _array(image: Any) -> NDArray[Any]:
    """An array, of PyTorch's tensors too: with a history, elsewhere, or in a format that numpy lacks."""
    if hasattr(image, "detach"):
        image = image.detach().cpu()
        image = image.float() if image.is_floating_point() else image
    return np.asarray(image)


def require_thick(height: int, width: int) -> None:
    """Refuse a picture that is so thin that resizing it makes a line.

    Raises:
        SptraceError: it is more than `THINNEST` times as long as wide.
    """
    if max(height, width) > THINNEST * min(height, width):
        raise SptraceError(f"a picture of {width} x {height} pixels is too thin: crop it first")


def _pixels(image: NDArray[Any], how: Preprocessing) -> NDArray[np.uint8]:
    wanted = "the artifact takes photographs, uint8 [N, H, W, 3]"
    if image.dtype != np.uint8:
        raise SptraceError(
            f"the image is {image.dtype} and {wanted}: pass pixels of 0 to 255, as Pillow gives them"
        )
    if image.ndim == 3 and image.shape[2] == 3:
        raise SptraceError(f"the image has no batch dimension and {wanted}: pass image[None]")
    if image.ndim != 4 or image.shape[3] != 3 or 0 in image.shape:
        raise SptraceError(f"the image is {list(image.shape)} and {wanted}: the colours come last")
    if how.resize is not None:
        require_thick(*image.shape[1:3])
    return np.ascontiguousarray(image)


def _prepared(image: NDArray[Any], how: Preprocessing) -> NDArray[np.float32]:
    height, width = how.size
    low, high = how.input_range
    if not np.issubdtype(image.dtype, np.floating):
        scaled = f"scaled so that black is {low:g} and white {high:g}"
        raise SptraceError(f"the image is {image.dtype}: pass float32, {scaled}")
    wanted = f"the artifact takes [N, 3, {height}, {width}]"
    if image.shape == (3, height, width):
        raise SptraceError(f"the image has no batch dimension and {wanted}: pass image[None]")
    if image.ndim == 4 and image.shape[1:] == (height, width, 3):
        raise SptraceError(f"the channels come last and {wanted}: pass image.transpose(0, 3, 1, 2)")
    advice = "sptrace.photo.prepare makes one from a photograph"
    if image.ndim != 4 or image.shape[1:] != (3, height, width) or len(image) == 0:
        raise SptraceError(f"the image is {list(image.shape)} and {wanted}: {advice}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused below
        image = np.ascontiguousarray(image, dtype=np.float32)
    if not np.isfinite(image).all():
        raise SptraceError("the image holds NaN or infinite values: mend it before it is explained")
    return image
