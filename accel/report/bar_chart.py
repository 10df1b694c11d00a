"""Bars: where the time went, and calls by reason."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from .drawing import INK, MUTED, SMALL, TEXT, Colour, beside, canvas, line_height, paragraph, stack, text_width, write
from .figures import TIME_NAMES, per_cent, seconds_text

# Told apart by people who see few colours, too.
TIME_COLOURS: dict[str, Colour] = {
    "planning": (230, 159, 0),
    "kernel": (0, 114, 178),
    "dense": (204, 85, 30),
    "other": (168, 174, 184),
    "dense_steps": (190, 116, 160),
    "guard": (0, 140, 104),
    "recording": (96, 84, 160),
}
REASON_COLOUR: Colour = (104, 128, 164)
SWATCH = 16


def time_bar(shares: Sequence[tuple[str, float, float]], width: int, height: int = 34) -> Image.Image:
    """One bar in pieces and what they are below; shares: (field of Times, seconds, share)."""
    bar, draw = canvas(width, height)
    start = 0.0
    for name, _, share in shares:
        end = start + share
        # Whole pixels on both sides: pieces neither overlap nor leave a gap.
        left, right = round(start * width), round(end * width)
        if right > left:
            draw.rectangle((left, 0, right - 1, height - 1), fill=TIME_COLOURS[name])
        start = end
    return stack([bar, *_legend(shares, width)], gap=10)


def _legend(shares: Sequence[tuple[str, float, float]], width: int) -> list[Image.Image]:
    """Rows of swatches with names, as many to a row as fit."""
    entries = []
    for name, seconds, share in shares:
        text = f"{TIME_NAMES[name]} {seconds_text(seconds)} ({per_cent(share)})"
        entry, draw = canvas(SWATCH + 8 + text_width(text, SMALL), line_height(SMALL))
        top = (entry.height - SWATCH) // 2
        draw.rectangle((0, top, SWATCH - 1, top + SWATCH - 1), fill=TIME_COLOURS[name])
        write(draw, (SWATCH + 8, entry.height / 2), text, SMALL, fill=INK)
        entries.append(entry)
    rows: list[list[Image.Image]] = [[]]
    for entry in entries:
        if rows[-1] and sum(e.width + 28 for e in rows[-1]) + entry.width > width:
            rows.append([])
        rows[-1].append(entry)
    return [beside(row, gap=28) for row in rows]


def count_bars(counts: Sequence[tuple[str, int]], width: int) -> Image.Image:
    """A row for each (name, count): the name, a bar as long as its count says, the count."""
    names = min(max(text_width(name, TEXT) for name, _ in counts) + 2, width * 2 // 5)
    numbers = max(text_width(str(count), TEXT) for _, count in counts)
    room, most = width - names - numbers - 32, max(count for _, count in counts)
    rows = []
    for name, count in counts:
        label = paragraph(name, names)
        bar, draw = canvas(width - names - 16, label.height)
        middle, length = label.height / 2, max(2, round(room * count / most))
        draw.rectangle((0, middle - 9, length - 1, middle + 8), fill=REASON_COLOUR)
        write(draw, (length + 10, middle), str(count), TEXT, fill=MUTED)
        rows.append(beside([label, bar], gap=16))
    return stack(rows, gap=2)
