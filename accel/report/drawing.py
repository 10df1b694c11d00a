"""Parts that pictures are made of: text, blocks stacked or side by side, numbers for an axis. Sizes are in pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK: Colour = (30, 34, 42)
MUTED: Colour = (96, 103, 115)
RULE: Colour = (221, 225, 231)
PAPER: Colour = (255, 255, 255)

TITLE, HEADING, TEXT, SMALL = 32, 23, 20, 17


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """The font that comes with PIL: no file of the machine is needed."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int) -> int:
    return math.ceil(font(size).getlength(text))


def line_height(size: int) -> int:
    return round(1.4 * size)


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    picture = Image.new("RGB", (width, height), PAPER)
    return picture, ImageDraw.Draw(picture)


def write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str = "lm", fill: Colour = INK
) -> None:
    """A line of text; anchor: as PIL names them, `lm` puts the middle of its left end at `place`."""
    draw.text(place, text, fill=fill, font=font(size), anchor=anchor)


def wrap(text: str, size: int, width: int) -> list[str]:
    """The lines of a text at most `width` wide; a word that is wider alone is broken."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if text_width(longer, size) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if text_width(lines[-1] + letter, size) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def paragraph(text: str, width: int, size: int = TEXT, fill: Colour = INK, mark: str = "") -> Image.Image:
    """A wrapped text, `width` wide; mark: what stands before its first line, such as a bullet."""
    indent = text_width(f"{mark} ", size) if mark else 0
    lines = wrap(text, size, width - indent)
    height = line_height(size)
    picture, draw = canvas(width, height * len(lines))
    write(draw, (0, height / 2), mark, size, fill=fill)
    for number, line in enumerate(lines):
        write(draw, (indent, height * (number + 0.5)), line, size, fill=fill)
    return picture


def stack(blocks: Sequence[Image.Image], gap: int) -> Image.Image:
    """Blocks below one another, their left edges in line."""
    picture, _ = canvas(max(b.width for b in blocks), sum(b.height for b in blocks) + gap * (len(blocks) - 1))
    top = 0
    for block in blocks:
        picture.paste(block, (0, top))
        top += block.height + gap
    return picture


def beside(blocks: Sequence[Image.Image], gap: int) -> Image.Image:
    """Blocks in a row, their upper edges in line."""
    picture, _ = canvas(sum(b.width for b in blocks) + gap * (len(blocks) - 1), max(b.height for b in blocks))
    left = 0
    for block in blocks:
        picture.paste(block, (left, 0))
        left += block.width + gap
    return picture


def rule(width: int) -> Image.Image:
    """A thin line between two parts, with room around it."""
    picture, draw = canvas(width, 25)
    draw.line((0, 12, width, 12), fill=RULE)
    return picture


def framed(block: Image.Image, margin: int) -> Image.Image:
    """With an empty border."""
    picture, _ = canvas(block.width + 2 * margin, block.height + 2 * margin)
    picture.paste(block, (margin, margin))
    return picture


def every(pixels: float, need: float) -> int:
    """Of rows or columns `pixels` apart, each how many-th gets a label that needs `need` pixels: 1, 2, 5, 10, 20, 50
    and so on."""
    return next(
        step for power in range(12) for step in (10**power, 2 * 10**power, 5 * 10**power) if step * pixels >= need
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`, which must be above it."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
    return [number * step for number in range(first, last + 1)]
