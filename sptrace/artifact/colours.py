"""The colours of attributions: what the pictures of Python and the overlay in a file are drawn with."""

from __future__ import annotations

POSITIONS = (-1.0, -0.667, -0.333, 0.0, 0.333, 0.667, 1.0)
COLOURS = (
    (33, 102, 172),
    (103, 169, 207),
    (209, 229, 240),
    (255, 255, 255),
    (253, 219, 199),
    (239, 138, 98),
    (178, 24, 43),
)
"""ColorBrewer's RdBu, seven classes, with a pure white for zero, at POSITIONS."""

POSITIVE, NEGATIVE = COLOURS[-1], COLOURS[0]
PERCENTILE = 99.0
"""Of the magnitudes what has the full colour: a few extreme pixels would otherwise make all the others pale."""
