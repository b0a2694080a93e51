"""From a photograph to what an artifact takes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from sptrace.artifact.description import Preprocessing
from sptrace.errors import SptraceError
from sptrace.runtime.checks import require_thick

# What Pillow logs about a damaged file would be printed beside the one line of the error.
logging.getLogger("PIL").addHandler(logging.NullHandler())
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def read(path: str | os.PathLike[str]) -> Image.Image:
    """Read a photograph as it is meant to be seen.

    Its EXIF orientation is applied, transparent parts become white, 16-bit greys are scaled to 8 bits. Of an
    animation it is the first frame.

    Arguments:
        path: a file in any format that Pillow reads.

    Returns:
        An image of mode RGB.

    Raises:
        SptraceError: the file is missing, damaged or not a picture.
    """
    try:
        with Image.open(path) as picture:
            return _rgb(ImageOps.exif_transpose(picture))
    except FileNotFoundError as error:
        raise SptraceError(f"there is no file {path}: give a photograph") from error
    except UnidentifiedImageError as error:
        raise SptraceError(
            f"{path} is not a picture that Pillow can read: convert it to PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise SptraceError(f"{path} is too large to be a photograph: make it smaller") from error
    except OSError as error:
        raise SptraceError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        Exception
    ) as error:  # Pillow raises all kinds for damaged files, ValueError for colours it cannot convert
        raise SptraceError(f"cannot read {path} ({error}): convert it to PNG or JPEG") from error


def in_folder(folder: str | os.PathLike[str]) -> list[Path]:
    """The files of a folder that are named like pictures, in the order of their names.

    Raises:
        SptraceError: there is no such folder, or no picture in it.
    """
    if not Path(folder).is_dir():
        raise SptraceError(f"there is no folder {folder}: give one with photographs")
    suffixes = Image.registered_extensions()
    found = [path for path in sorted(Path(folder).iterdir()) if path.suffix.lower() in suffixes]
    if not found:
        raise SptraceError(f"the folder {folder} holds no pictures: give one with photographs")
    return found


def crop(picture: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The part of a picture that the network sees, in the network's size.

    The shorter side is scaled to `preprocessing.resize` and the centre is cut out; a picture that would not
    cover the cut is scaled till it does. With `resize` None the whole picture is squeezed into the size.

    Arguments:
        picture: of mode RGB.
        preprocessing: of the artifact.

    Returns:
        An image of mode RGB and `preprocessing.size`.

    Raises:
        SptraceError: the artifact names an interpolation that Pillow does not have, or the picture is a line.
    """
    if preprocessing.interpolation not in _RESAMPLING:
        known = ", ".join(_RESAMPLING)
        raise SptraceError(
            f"the artifact asks for interpolation {preprocessing.interpolation!r}: known are {known}"
        )
    height, width = preprocessing.size
    resampling = _RESAMPLING[preprocessing.interpolation]
    if preprocessing.resize is None:
        return picture.resize((width, height), resampling)
    require_thick(picture.height, picture.width)
    scale = max(preprocessing.resize / min(picture.size), width / picture.width, height / picture.height)
    # The small term keeps a product that should be whole from falling just below it.
    resized_width = max(width, int(picture.width * scale + 1e-6))
    resized_height = max(height, int(picture.height * scale + 1e-6))
    # Rounded as torchvision's Resize and CenterCrop round.
    left, top = round((resized_width - width) / 2), round((resized_height - height) / 2)
    resized = picture.resize((resized_width, resized_height), resampling)
    return resized.crop((left, top, left + width, top + height))


def prepare(picture: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """The input of an artifact for one picture.

    Arguments:
        picture: of mode RGB.
        preprocessing: of the artifact.

    Returns:
        float32 [1, 3, height, width] in `preprocessing.input_range`.

    Raises:
        SptraceError: as in `crop`.
    """
    low, high = preprocessing.input_range
    pixels = np.asarray(crop(picture, preprocessing), dtype=np.float32) / 255
    return np.ascontiguousarray((low + (high - low) * pixels).transpose(2, 0, 1)[None], dtype=np.float32)


def restore(image: NDArray[np.float32], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """What `prepare` did to colours, undone: pixels to look at.

    Arguments:
        image: float32 [N, 3, H, W]; values beyond the range are cut off.
        preprocessing: as the artifact describes it.

    Returns:
        uint8 [N, H, W, 3].
    """
    low, high = preprocessing.input_range
    pixels = (image.transpose(0, 2, 3, 1) - low) * (255 / (high - low))
    return np.asarray(np.clip(np.rint(pixels), 0, 255), dtype=np.uint8)


def _rgb(picture: Image.Image) -> Image.Image:
    """The picture in mode RGB, over white where it is transparent."""
    if picture.mode.startswith("I"):
        return _sixteen_bit(picture).convert("RGB")
    if picture.mode == "F":
        raise ValueError("floating-point pixels have no agreed black and white")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _sixteen_bit(picture: Image.Image) -> Image.Image:
    """A 16-bit grey picture in 8 bits; Pillow's own conversion clips everything above 255 to white."""
    pixels = np.asarray(picture).astype(np.int64)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ValueError("32-bit pixels have no agreed black and white")
    return Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
