"""A line over numbered frames, with its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from PIL import Image, ImageDraw

from .drawing import (
    HEADING,
    MUTED,
    PAPER,
    RULE,
    SMALL,
    TEXT,
    Colour,
    canvas,
    every,
    line_height,
    text_width,
    ticks,
    write,
)

HEAD = line_height(HEADING) + 12
# Room for numbers such as 0.9975 at the left, and for half a frame's number at the right.
GUTTER, END = 84, 12
FOOT = 2 * line_height(SMALL) + 4
# PIL draws lines with hard edges: they are drawn this much larger and reduced.
SMOOTH = 4


@dataclass(frozen=True)
class Curve:
    """values: one a frame; one that is not finite leaves a gap. least_span: the axis covers at least that much, so that
    noise does not look like an event. top: the largest possible value. empty: words for no finite value."""

    title: str
    values: Sequence[float]
    colour: Colour
    least_span: float
    top: float = math.inf
    empty: str = ""

    @property
    def _known(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    def limits(self) -> tuple[float, float]:
        """The lowest and the highest number of the axis; between them lie all finite values."""
        low, high = min(self._known, default=0.0), max(self._known, default=0.0)
        if high - low < self.least_span:
            middle = (low + high) / 2
            high = min(self.top, max(high, middle + self.least_span / 2))
            low = min(low, high - self.least_span)
        room = 0.06 * (high - low)
        return low - room, high + room

    def draw(self, width: int, height: int) -> Image.Image:
        """width: of the whole picture; height: of the field with the line."""
        low, high = self.limits()
        field = (width - GUTTER - END, height)
        levels = {f"{n:.6g}": height * (high - n) / (high - low) for n in ticks(low, high)} if self._known else {}
        points = [
            (self.x(frame, width) - GUTTER, height * (high - value) / (high - low)) if math.isfinite(value) else None
            for frame, value in enumerate(self.values)
        ]
        picture, draw = canvas(width, HEAD + height + FOOT)
        write(draw, (GUTTER, line_height(HEADING) / 2), self.title, HEADING)
        picture.paste(self._line(field, list(levels.values()), points), (GUTTER, HEAD))
        for number, y in levels.items():
            write(draw, (GUTTER - 10, HEAD + y), number, SMALL, "rm", MUTED)
        if not self._known:
            write(draw, (GUTTER + field[0] / 2, HEAD + height / 2), self.empty, TEXT, "mm", MUTED)
        frames, line = len(self.values), line_height(SMALL)
        need = text_width(str(frames - 1), SMALL) + 24
        for frame in range(0, frames, every(field[0] / frames, need)):
            write(draw, (self.x(frame, width), HEAD + height + line / 2 + 2), str(frame), SMALL, "mm", MUTED)
        write(draw, (GUTTER + field[0] / 2, HEAD + height + 1.5 * line), "frame", SMALL, "mm")
        return picture

    def x(self, frame: int, width: int) -> float:
        """Where a frame lies in a picture `width` wide."""
        return GUTTER + (width - GUTTER - END) * (frame + 0.5) / len(self.values)

    def _line(
        self, field: tuple[int, int], levels: Sequence[float], points: Sequence[tuple[float, float] | None]
    ) -> Image.Image:
        """The line with dots, over grid lines at the heights `levels`; a point that is None leaves a gap."""
        large = Image.new("RGB", (field[0] * SMOOTH, field[1] * SMOOTH), PAPER)
        draw = ImageDraw.Draw(large)
        for y in levels:
            draw.line((0, y * SMOOTH, large.width, y * SMOOTH), fill=RULE, width=SMOOTH)
        scaled = [point and (point[0] * SMOOTH, point[1] * SMOOTH) for point in points]
        for a, b in pairwise(scaled):
            if a and b:
                draw.line((*a, *b), fill=self.colour, width=3 * SMOOTH)
        # Dots join the pieces; few frames get dots that stand out.
        radius = (5 if len(points) <= 60 else 1.5) * SMOOTH
        for x, y in filter(None, scaled):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=self.colour)
        return large.resize(field, Image.Resampling.LANCZOS)
