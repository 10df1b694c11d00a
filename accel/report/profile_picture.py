"""A profile as a picture: what error each layer has at which density, and what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..attention.account.recording import Recording
from ..attention.profiles.frontier import frontier
from ..attention.profiles.profile import ERROR, Profile
from .drawing import (
    INK,
    MUTED,
    PAPER,
    RULE,
    SMALL,
    TITLE,
    Colour,
    beside,
    canvas,
    every,
    framed,
    line_height,
    paragraph,
    stack,
    text_width,
    ticks,
    write,
)
from .scale import GREEN_BLUE, Scale

PLOT_WIDTH, PLOT_HEIGHT = 760, 520
MARGIN = 28
LEFT, TOP, BOTTOM = 96, 16, 2 * line_height(SMALL) + 14
BAR_GAP, BAR_WIDTH = 40, 18
RADIUS = 6
# Lines are drawn larger and made smaller: PIL knows no smooth ones.
SMOOTH = 3
POINTS = 200
# Width of what stands before a legend's text.
SYMBOL = 34
# Largest error over least on the axis, at most.
DECADES = 4
TARGET = (196, 64, 40)
# Without the lightest, which is hard to see as a line on white.
DEPTHS = GREEN_BLUE[1:]

Line = list[tuple[float, float]]


@dataclass(frozen=True)
class Axes:
    """Density 0 to 1 to the right, error from `low` to `high` upwards in the logarithm, in pixels of the plot."""

    low: float
    high: float

    def x(self, density: float) -> float:
        return density * PLOT_WIDTH

    def y(self, error: float) -> float:
        return PLOT_HEIGHT * math.log(self.high / max(error, self.low / 10)) / math.log(self.high / self.low)

    def numbers(self) -> list[float]:
        """1, 2 and 5 times powers of ten."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        return [n for p in powers for f in (1, 2, 5) if self.low * 0.999 <= (n := f * 10.0**p) <= self.high * 1.001]


def profile_picture(recording: Recording, profile: Profile) -> Image.Image:
    """One line a layer: the least density for each error, as far as it was measured; on it what the profile chose,
    in the colour of the layer's depth. An error that was asked for is a horizontal line."""
    lines = _lines(recording)
    target = profile.target_value if profile.target == ERROR else None
    axes = _axes(lines, profile, target)
    depth = Scale(DEPTHS, max(1.0, float(len(lines) - 1)))
    width = LEFT + PLOT_WIDTH + BAR_GAP + BAR_WIDTH + 12 + text_width(str(profile.layers[-1]), SMALL) + 8
    picture, draw = canvas(width, TOP + PLOT_HEIGHT + BOTTOM)
    picture.paste(_plot(axes, depth, lines, profile, target), (LEFT, TOP))
    _numbers(picture, draw, axes)
    _colour_bar(draw, depth, profile.layers)

    title, pen = canvas(width, line_height(TITLE))
    write(pen, (0, title.height / 2), f"Error against density: {profile.model}, {profile.pattern}", TITLE)
    blocks = [title, paragraph(_summary(profile), width, fill=MUTED), picture, _legend(depth, profile, target)]
    return framed(stack([*blocks, paragraph(profile.note, width)], 14), MARGIN)


def _summary(profile: Profile) -> str:
    density = sum(profile.density) / len(profile.density)
    if profile.target == ERROR:
        request = f"asked for the error {profile.target_value:g}"
    else:
        request = f"asked for {profile.target_value:g}x"
    met = "" if profile.met else ", which cannot be met"
    layers = "1 layer" if len(profile.layers) == 1 else f"{len(profile.layers)} layers"
    return f"{request}{met}; chosen: mean density {density:.2f} in {layers} of {profile.heads} heads"


def _lines(recording: Recording) -> list[Line]:
    """(density, error) of each layer."""
    path = frontier(recording)
    lines = []
    for density, error, densest in zip(path.density, path.error, path.densest.tolist(), strict=True):
        # Further on, nothing but the end was measured. With room for rounding.
        last = int((error >= densest * (1 - 1e-9)).sum()) - 1
        places = sorted({round(last * point / POINTS) for point in range(POINTS + 1)})
        lines.append([(density[place].item(), error[place].item()) for place in places])
    return lines


def _axes(lines: list[Line], profile: Profile, target: float | None) -> Axes:
    errors = [error for line in lines for _, error in line] + [*profile.error, target or 0.0]
    high = 1.4 * max(errors, default=0.0) or 1.0
    low = min((error for error in errors if error > 0), default=high) / 1.6
    return Axes(max(low, high / 10**DECADES), high)


def _plot(axes: Axes, depth: Scale, lines: list[Line], profile: Profile, target: float | None) -> Image.Image:
    size = (PLOT_WIDTH * SMOOTH, PLOT_HEIGHT * SMOOTH)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)

    def place(density: float, error: float) -> tuple[float, float]:
        return axes.x(density) * SMOOTH, axes.y(error) * SMOOTH

    for number in axes.numbers():
        draw.line((*place(0, number), *place(1, number)), fill=RULE, width=SMOOTH)
    for number in ticks(0, 1):
        draw.line((place(number, 1)[0], 0, place(number, 1)[0], size[1]), fill=RULE, width=SMOOTH)
    for number, line in enumerate(lines):
        draw.line([place(*point) for point in line], fill=depth.colour(number), width=2 * SMOOTH, joint="curve")
    if target is not None:
        _dashes(draw, place(0, target)[1], size[0])
    for number, (density, error) in enumerate(zip(profile.density, profile.error, strict=True)):
        if density < 1:
            _disc(draw, place(density, error), depth.colour(number))
    if _everything(profile):
        # Without error it has no place on the axis.
        _triangle(draw, (size[0] - 4 * RADIUS * SMOOTH, size[1] - 4 * RADIUS * SMOOTH))
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=MUTED, width=SMOOTH)
    return picture.resize((PLOT_WIDTH, PLOT_HEIGHT), Image.Resampling.LANCZOS)


def _everything(profile: Profile) -> int:
    """How many layers keep everything."""
    return sum(density >= 1 for density in profile.density)


def _dashes(draw: ImageDraw.ImageDraw, y: float, width: float) -> None:
    dash = 10 * SMOOTH
    for start in range(0, round(width), 2 * dash):
        draw.line((start, y, min(start + dash, width), y), fill=TARGET, width=2 * SMOOTH)


def _disc(draw: ImageDraw.ImageDraw, place: tuple[float, float], colour: Colour) -> None:
    (x, y), r = place, RADIUS * SMOOTH
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour, outline=INK, width=SMOOTH)


def _triangle(draw: ImageDraw.ImageDraw, place: tuple[float, float]) -> None:
    draw.regular_polygon((*place, 1.4 * RADIUS * SMOOTH), 3, rotation=180, fill=MUTED, outline=INK, width=SMOOTH)


def _numbers(picture: Image.Image, draw: ImageDraw.ImageDraw, axes: Axes) -> None:
    line, bottom = line_height(SMALL), TOP + PLOT_HEIGHT
    for number in ticks(0, 1):
        write(draw, (LEFT + axes.x(number), bottom + 4 + line / 2), f"{number:.1f}", SMALL, "mm", MUTED)
    write(draw, (LEFT + PLOT_WIDTH / 2, bottom + 8 + 1.5 * line), "density: kept part of the map", SMALL, "mm")
    for number in axes.numbers():
        write(draw, (LEFT - 10, TOP + axes.y(number)), f"{number:.10g}", SMALL, "rm", MUTED)
    name = "relative error of the attention output"
    across, pen = canvas(text_width(name, SMALL), line)
    write(pen, (0, line / 2), name, SMALL)
    upright = across.rotate(90, expand=True)
    picture.paste(upright, (0, TOP + (PLOT_HEIGHT - upright.height) // 2))


def _colour_bar(draw: ImageDraw.ImageDraw, depth: Scale, layers: tuple[int, ...]) -> None:
    """The first layer at the top."""
    left, last = LEFT + PLOT_WIDTH + BAR_GAP, len(layers) - 1
    top, height = TOP + line_height(SMALL), PLOT_HEIGHT - line_height(SMALL)
    write(draw, (left, TOP + SMALL / 2), "layer", SMALL, "lm")
    for y in range(height):
        draw.line((left, top + y, left + BAR_WIDTH - 1, top + y), fill=depth.colour(last * y / height))
    row = height / len(layers)
    for number in range(0, len(layers), every(row, 2 * line_height(SMALL))):
        y = top + (height - 1) * number / max(1, last)
        place = min(max(y, top + SMALL / 2), top + height - SMALL / 2)
        write(draw, (left + BAR_WIDTH + 10, place), str(layers[number]), SMALL, "lm", MUTED)


def _legend(depth: Scale, profile: Profile, target: float | None) -> Image.Image:
    entries = [
        _entry(lambda draw, x, y: draw.line((0, y, 2 * x, y), fill=depth.colour(0), width=2 * SMOOTH), "a layer"),
        _entry(lambda draw, x, y: _disc(draw, (x, y), depth.colour(0)), "chosen"),
    ]
    if target is not None:
        entries.append(_entry(lambda draw, x, y: _dashes(draw, y, 2 * x), f"asked: {target:g}"))
    if everything := _everything(profile):
        text = f"{everything} of {len(profile.layers)} layers keep everything"
        entries.append(_entry(lambda draw, x, y: _triangle(draw, (x, y)), text))
    return beside(entries, 28)


def _entry(symbol: Callable[[ImageDraw.ImageDraw, float, float], None], text: str) -> Image.Image:
    """symbol: draws around the middle (x, y) of its own field."""
    height = line_height(SMALL)
    field = Image.new("RGB", (SYMBOL * SMOOTH, height * SMOOTH), PAPER)
    symbol(ImageDraw.Draw(field), SYMBOL * SMOOTH / 2, height * SMOOTH / 2)
    picture, draw = canvas(SYMBOL + 8 + text_width(text, SMALL), height)
    picture.paste(field.resize((SYMBOL, height), Image.Resampling.LANCZOS), (0, 0))
    write(draw, (SYMBOL + 8, height / 2), text, SMALL)
    return picture
