"""One picture that shows an explanation: for a slide, drawn with Pillow alone."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sptrace.artifact.colours import COLOURS, PERCENTILE, POSITIONS
from sptrace.artifact.files import replacing
from sptrace.errors import SptraceError

FORMATS = (".png", ".jpg", ".jpeg", ".webp", ".tiff", ".pdf")
PANEL = 448
MARGIN, GAP = 40, 24
BAR_WIDTH, BAR_HEIGHT = 112, 12
TITLE, NOTE = 30, 19
TITLE_HEIGHT, CAPTION_HEIGHT, ROW_GAP, FOOTER_HEIGHT = 50, 40, 30, 46
AROUND = MARGIN - ROW_GAP + CAPTION_HEIGHT + FOOTER_HEIGHT + MARGIN // 2
"""Pixels above, below and under the last of the rows."""
HIGHEST = {".webp": 16383, ".jpg": 65500}
"""Pixels that a format holds, all others as many as JPEG."""
INK, FAINT, LINE = (28, 28, 30), (110, 110, 116), (205, 205, 210)
CAPTIONS = ("what the network saw", "attribution, summed over colours", "the change that raises the score")
ARRIVED = "the picture that the ascent arrives at"


@dataclass(frozen=True)
class Row:
    """One explained class.

    Arguments:
        label: name of the class, or of what else was explained.
        probability: of the class, in [0, 1]; None for what has none.
        attribution: float32 [3, H, W].
        arrived: of an ascent the picture that it arrives at, uint8 [H, W, 3].
        probability_out: of the class in that picture.
        value: what the network gives where that has no probability; None where nothing is to be said.
        value_out: the same in that picture.
    """

    label: str
    probability: float | None
    attribution: NDArray[np.float32]
    arrived: NDArray[np.uint8] | None = None
    probability_out: float | None = None
    value: float | None = None
    value_out: float | None = None


def draw(photo: Image.Image, rows: Sequence[Row], *, program: str, network: str) -> Image.Image:
    """Draw explained classes below each other.

    Every row holds the photograph, the attribution summed over the colour channels (red positive, blue
    negative, zero white), and the attribution as a change of the picture: mid-grey where nothing would have
    to change. An ascent's row holds the picture that it arrives at in place of that change.

    Arguments:
        photo: what the network saw, mode RGB, W x H pixels, as `sptrace.photo.crop` gives it.
        rows: the explained classes, one or more.
        program: name of the program, for the line at the foot.
        network: name of the network, for the line at the foot.

    Returns:
        An image of mode RGB; the longer side of every panel has 448 pixels.
    """
    panel = _panel(photo.size)
    row_height = TITLE_HEIGHT + panel[1] + ROW_GAP
    width = _lefts(panel[0])[2] + panel[0] + MARGIN
    height = len(rows) * row_height + AROUND
    canvas = Image.new("RGB", (width, height), "white")
    for number, row in enumerate(rows):
        _draw_row(canvas, MARGIN + number * row_height, panel, photo, row)
    captions = (*CAPTIONS[:2], ARRIVED) if rows[-1].arrived is not None else CAPTIONS
    _draw_captions(canvas, height - MARGIN // 2 - FOOTER_HEIGHT - CAPTION_HEIGHT + 10, panel[0], captions)
    note = _fit(f"{program}  ·  {network}", NOTE, width - 2 * MARGIN)
    ImageDraw.Draw(canvas).text((MARGIN, height - MARGIN // 2 - 26), note, FAINT, _font(NOTE))
    return canvas


def _panel(photo: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a panel for a photograph of that width and height."""
    scale = PANEL / max(photo)
    return max(1, round(photo[0] * scale)), max(1, round(photo[1] * scale))


def most_rows(path: str | os.PathLike[str], photo: tuple[int, int]) -> int:
    """How many classes of a photograph of that width and height fit into a file of that format."""
    highest = HIGHEST.get(Path(path).suffix.lower(), HIGHEST[".jpg"])
    return (highest - AROUND) // (TITLE_HEIGHT + _panel(photo)[1] + ROW_GAP)


def require_format(path: str | os.PathLike[str]) -> None:
    """Fail before the work rather than after it, if `path` does not end in the name of a format.

    Raises:
        SptraceError: the extension is missing or unknown.
    """
    extension = Path(path).suffix.lower()
    if extension not in FORMATS:
        raise SptraceError(f"cannot write {path} as a picture: end its name in {', '.join(FORMATS)}")


def save(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Save a picture in the format that the extension of `path` names, whole or not at all.

    Raises:
        SptraceError: the extension names no format, or the file cannot be written.
    """
    require_format(path)
    with replacing(path) as temporary:
        # Pillow's default makes JPEG blur single pixels. PNG and TIFF are lossless anyway.
        picture.save(temporary, quality=95)


def diverging(values: NDArray[np.floating]) -> Image.Image:
    """Colours from blue over white to red.

    Arguments:
        values: [H, W]; -1 and below is blue, 0 is exactly white, 1 and above is red.

    Returns:
        An image of mode RGB, W x H pixels.
    """
    channels = [np.interp(values, POSITIONS, [colour[c] for colour in COLOURS]) for c in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def as_change(values: NDArray[np.floating]) -> Image.Image:
    """An attribution as colours around mid-grey.

    Arguments:
        values: [3, H, W]; -1 and below is 0, 0 is mid-grey (128), 1 and above is 255, in every channel.

    Returns:
        An image of mode RGB, W x H pixels.
    """
    pixels = np.clip(128 + 127.5 * values.transpose(1, 2, 0), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8))


def magnitude(values: NDArray[np.floating]) -> float:
    """What to divide by before drawing: a high percentile of the absolute values.

    If that is zero it is their maximum, and 1 if all of them are zero.
    """
    return float(np.percentile(np.abs(values), PERCENTILE)) or float(np.abs(values).max()) or 1.0


def _draw_row(canvas: Image.Image, top: int, panel: tuple[int, int], photo: Image.Image, row: Row) -> None:
    summed = row.attribution.sum(axis=0)
    scale = magnitude(summed)
    if row.arrived is None:
        last = as_change(row.attribution / magnitude(row.attribution))
    else:
        last = Image.fromarray(row.arrived)
    pictures = (photo, diverging(summed / scale), last)
    lefts = _lefts(panel[0])
    bar = _draw_bar(canvas, top, lefts[1] + panel[0], scale)
    _draw_title(canvas, top, bar - GAP, row)
    pen = ImageDraw.Draw(canvas)
    top += TITLE_HEIGHT
    for left, picture in zip(lefts, pictures, strict=True):
        canvas.paste(picture.resize(panel, Image.Resampling.BICUBIC), (left, top))
        pen.rectangle((left - 1, top - 1, left + panel[0], top + panel[1]), outline=LINE)


def _draw_title(canvas: Image.Image, top: int, right: int, row: Row) -> None:
    """The class and its probability or value, if it has one, no further than `right`."""
    pen, font = ImageDraw.Draw(canvas), _font(TITLE)
    shares = [f"{share:.1%}" for share in (row.probability, row.probability_out) if share is not None]
    values = [f"{value:.4g}" for value in (row.value, row.value_out) if value is not None]
    figures = "".join(f"   {', then '.join(given)}" for given in (shares, values) if given)
    label = _fit(row.label, TITLE, right - MARGIN - font.getlength(figures))
    pen.text((MARGIN, top), label, INK, font)
    pen.text((MARGIN + font.getlength(label), top), figures, FAINT, font)


def _draw_bar(canvas: Image.Image, top: int, right: int, scale: float) -> int:
    """The colour bar with the values of its ends on both sides; returns where it begins."""
    pen, font = ImageDraw.Draw(canvas), _font(NOTE)
    low, high = f"-{scale:.2g}  ", f"  +{scale:.2g}"
    end, upper = right - round(font.getlength(high)), top + 15
    start, middle = end - BAR_WIDTH, upper + BAR_HEIGHT / 2
    ramp = np.linspace(-1, 1, BAR_WIDTH)[None].repeat(BAR_HEIGHT, axis=0)
    canvas.paste(diverging(ramp), (start, upper))
    pen.rectangle((start - 1, upper - 1, end, upper + BAR_HEIGHT), outline=LINE)
    pen.text((start, middle), low, FAINT, font, anchor="rm")
    pen.text((end, middle), high, FAINT, font, anchor="lm")
    return start - round(font.getlength(low))


def _draw_captions(canvas: Image.Image, top: int, width: int, captions: Sequence[str]) -> None:
    for left, caption in zip(_lefts(width), captions, strict=True):
        ImageDraw.Draw(canvas).text((left, top), _fit(caption, NOTE, width), FAINT, _font(NOTE))


def _lefts(width: int) -> tuple[int, int, int]:
    """Left edges of the three panels."""
    return MARGIN, MARGIN + width + GAP, MARGIN + 2 * (width + GAP)


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind comes only when no size is given
    return font


def _fit(text: str, size: int, width: float) -> str:
    """The text, shortened until it fits: to the first of its comma-separated names, then letter by letter."""
    font = _font(size)
    # Pillow's own font has no accented letters: take the accents off.
    letters = unicodedata.normalize("NFKD", text)
    text = "".join(letter for letter in letters if not unicodedata.combining(letter))
    if font.getlength(text) > width:
        text = text.partition(",")[0]
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"
