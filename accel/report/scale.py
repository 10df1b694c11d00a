"""Colours for numbers: few anchors, interpolated, darker for more, so that they also read in grey and by people who see
few colours."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .drawing import Colour

# Light green over teal to dark blue, and peach over red to dark purple: lightness falls evenly in both, and neither
# comes near the grey of a blank cell.
GREEN_BLUE = ((226, 240, 176), (146, 208, 168), (66, 158, 170), (40, 98, 148), (28, 38, 94))
PEACH_PURPLE = ((254, 221, 176), (246, 164, 112), (222, 94, 84), (160, 42, 92), (70, 12, 76))


@dataclass(frozen=True)
class Scale:
    """Numbers from 0 to `top` as colours between the anchors; beyond them the colour of the end."""

    anchors: tuple[Colour, ...]
    top: float = 1.0

    def colour(self, value: float) -> Colour:
        place = min(max(value / self.top, 0.0), 1.0) * (len(self.anchors) - 1)
        left = min(int(place), len(self.anchors) - 2)
        part = place - left
        pairs = zip(self.anchors[left], self.anchors[left + 1], strict=True)
        return tuple(round(a + (b - a) * part) for a, b in pairs)


def round_top(values: Iterable[float], most: float = 1.0) -> float:
    """The next of 1, 2, 5 times a power of ten that holds all values, at most `most`; `most` where there is none above
    0."""
    largest = max(values, default=0.0)
    if not 0 < largest < most:
        return most
    power = 10.0 ** math.floor(math.log10(largest))
    return min(most, next(f * power for f in (1, 2, 5, 10) if f * power >= largest * (1 - 1e-9)))
