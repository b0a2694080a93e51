"""The measurements as a bar chart, drawn with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from sptrace.bench.job import OURS
from sptrace.bench.report import Report, in_words
from sptrace.bench.timing import Row

WIDTH, MARGIN = 1200, 40
LABEL_WIDTH, VALUE_WIDTH = 190, 270
TITLE, TEXT, NOTE = 30, 22, 18
TITLE_HEIGHT, GROUP_HEIGHT, BAR_HEIGHT, BAR_STEP, GROUP_GAP = 56, 40, 28, 42, 18
OWN, OTHER = (33, 102, 172), (178, 186, 196)
_REACH = 1.25
"""Times the longest median: what is drawn of longer times."""
INK, FAINT = (28, 28, 30), (110, 110, 116)


def draw(report: Report) -> Image.Image:
    """Draw a bar for the median time of every side, with a line from the shortest to the longest time.

    Each batch size has a scale of its own. Sides without numbers are left out.

    Returns:
        An image of mode RGB, 1200 pixels wide.
    """
    batches = sorted({row.batch for row in report.rows})
    groups = {
        batch: [row for row in report.rows if row.batch == batch and row.median_ms is not None]
        for batch in batches
    }
    height = 2 * MARGIN + TITLE_HEIGHT + 30
    height += sum(GROUP_HEIGHT + BAR_STEP * len(group) + GROUP_GAP for group in groups.values())
    canvas = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(canvas)
    pen.text((MARGIN, MARGIN), f"{report.program} of {report.network}", INK, _font(TITLE))
    top = MARGIN + TITLE_HEIGHT
    for batch, rows in groups.items():
        pen.text((MARGIN, top), f"milliseconds for {in_words(batch, 'picture')}", FAINT, _font(TEXT))
        top += GROUP_HEIGHT
        _draw_group(pen, top, rows)
        top += BAR_STEP * len(rows) + GROUP_GAP
    size = f"{report.size[0]} x {report.size[1]} pixels"
    note = f"{size}  ·  {in_words(report.threads, 'thread')}  ·  {report.machine.processor}"
    pen.text((MARGIN, height - MARGIN - 12), note, FAINT, _font(NOTE))
    return canvas


def _draw_group(pen: ImageDraw.ImageDraw, top: int, rows: Sequence[Row]) -> None:
    """The bars of one batch size; lines to times far above the longest median end where the room does."""
    left = MARGIN + LABEL_WIDTH
    longest = _REACH * max((row.median_ms or 0.0 for row in rows), default=0.0) or 1.0
    scale = (WIDTH - MARGIN - VALUE_WIDTH - left) / longest
    for row in rows:
        assert row.median_ms is not None
        assert row.min_ms is not None
        assert row.max_ms is not None
        middle = top + BAR_HEIGHT // 2
        pen.text((MARGIN, middle), row.side, INK, _font(TEXT), anchor="lm")
        colour = OWN if row.side == OURS else OTHER
        pen.rectangle((left, top, left + row.median_ms * scale, top + BAR_HEIGHT), fill=colour)
        reach = min(row.max_ms, longest)
        pen.line((left + row.min_ms * scale, middle, left + reach * scale, middle), fill=INK, width=2)
        compared = "" if row.side == OURS or row.ratio is None else f"   {row.ratio:.2f} times ours"
        end = left + reach * scale + 14
        pen.text((end, middle), f"{row.median_ms:.1f}{compared}", INK, _font(TEXT), anchor="lm")
        top += BAR_STEP


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # the other kind comes only when no size is given
    return font
