"""A heatmap of layer x step, with its axes and its colour bar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..attention.account.timeline import Grid
from .drawing import HEADING, INK, MUTED, RULE, SMALL, canvas, every, line_height, text_width, ticks, write
from .figures import finite
from .scale import Scale

# The grid's aim, within the limits of a cell.
GRID_WIDTH, GRID_HEIGHT = 560, 600
CELL_WIDTH, CELL_HEIGHT = (6, 140), (9, 40)
# From this size on, cells stand apart by a pixel.
APART = 5
HEAD = line_height(HEADING) + 12
FOOT = 2 * line_height(SMALL) + 4
BAR_GAP, BAR_WIDTH = 24, 18
BLANK, HATCH = (246, 247, 249), (214, 218, 225)


@dataclass(frozen=True)
class Heatmap:
    """values [layer][column], None where nothing was measured: such a cell is hatched. steps: numbers of the columns.
    blank: what an empty cell means, shown in the legend where there is one."""

    title: str
    values: Grid
    steps: Sequence[int]
    scale: Scale
    blank: str = "not sampled"

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a cell in pixels."""
        return (
            min(max(GRID_WIDTH // len(self.steps), CELL_WIDTH[0]), CELL_WIDTH[1]),
            min(max(GRID_HEIGHT // len(self.values), CELL_HEIGHT[0]), CELL_HEIGHT[1]),
        )

    @property
    def left(self) -> int:
        """Where the grid begins, right of the layer numbers and their name."""
        return line_height(SMALL) + 6 + text_width(str(len(self.values) - 1), SMALL) + 10

    @property
    def size(self) -> tuple[int, int]:
        """Of the grid alone."""
        width, height = self.cell
        return width * len(self.steps), height * len(self.values)

    def box(self, layer: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a cell in the picture; the last two lie inside."""
        width, height = self.cell
        left, top = self.left + column * width, HEAD + layer * height
        gap_x, gap_y = int(width >= APART), int(height >= APART)
        return left, top, left + width - 1 - gap_x, top + height - 1 - gap_y

    def draw(self) -> Image.Image:
        width, height = self.size
        numbers = [f"{tick:.10g}" for tick in ticks(0, self.scale.top)]
        right = self.left + width + BAR_GAP + BAR_WIDTH + 10 + max(text_width(n, SMALL) for n in numbers)
        picture, draw = canvas(max(right, text_width(self.title, HEADING)), HEAD + height + FOOT)
        write(draw, (self.left, line_height(HEADING) / 2), self.title, HEADING)
        self._cells(picture, draw)
        self._axes(picture, draw)
        self._colour_bar(draw, numbers)
        return picture

    def _cells(self, picture: Image.Image, draw: ImageDraw.ImageDraw) -> None:
        hatched = _hatching(*self.size)
        for layer, row in enumerate(self.values):
            for column, value in enumerate(row):
                left, top, right, bottom = box = self.box(layer, column)
                if finite(value) is not None:
                    draw.rectangle(box, fill=self.scale.colour(value))
                    continue
                x, y = left - self.left, top - HEAD
                picture.paste(hatched.crop((x, y, x + right - left + 1, y + bottom - top + 1)), (left, top))

    def _axes(self, picture: Image.Image, draw: ImageDraw.ImageDraw) -> None:
        (cell_width, cell_height), (width, height) = self.cell, self.size
        line = line_height(SMALL)
        for layer in range(0, len(self.values), every(cell_height, line)):
            write(draw, (self.left - 10, HEAD + (layer + 0.5) * cell_height), str(layer), SMALL, "rm", MUTED)
        need = text_width(str(max(self.steps)), SMALL) + 10
        for column in range(0, len(self.steps), every(cell_width, need)):
            place = (self.left + (column + 0.5) * cell_width, HEAD + height + line / 2 + 2)
            write(draw, place, str(self.steps[column]), SMALL, "mm", MUTED)
        write(draw, (self.left + width / 2, HEAD + height + 1.5 * line), "step", SMALL, "mm", INK)
        name, pen = canvas(text_width("layer", SMALL), line)
        write(pen, (0, line / 2), "layer", SMALL)
        upright = name.rotate(90, expand=True)
        picture.paste(upright, (0, max(HEAD, HEAD + (height - upright.height) // 2)))
        if any(finite(value) is None for row in self.values for value in row):
            self._legend(picture, draw)

    def _legend(self, picture: Image.Image, draw: ImageDraw.ImageDraw) -> None:
        """What hatching means, at the right of the title."""
        side = SMALL
        left = self.left + self.size[0] - text_width(self.blank, SMALL) - side - 8
        left = max(left, self.left + text_width(self.title, HEADING) + 24)
        top = (line_height(HEADING) - side) // 2
        picture.paste(_hatching(side, side), (left, top))
        draw.rectangle((left, top, left + side - 1, top + side - 1), outline=RULE)
        write(draw, (left + side + 8, line_height(HEADING) / 2), self.blank, SMALL, fill=MUTED)

    def _colour_bar(self, draw: ImageDraw.ImageDraw, numbers: list[str]) -> None:
        left, height = self.left + self.size[0] + BAR_GAP, self.size[1]
        for y in range(height):
            colour = self.scale.colour(self.scale.top * (1 - y / max(1, height - 1)))
            draw.line((left, HEAD + y, left + BAR_WIDTH - 1, HEAD + y), fill=colour)
        for number in numbers:
            y = HEAD + (height - 1) * (1 - float(number) / self.scale.top)
            draw.line((left + BAR_WIDTH, y, left + BAR_WIDTH + 4, y), fill=MUTED)
            write(draw, (left + BAR_WIDTH + 10, y), number, SMALL, "lm", MUTED)


def _hatching(width: int, height: int) -> Image.Image:
    """Grey diagonals on light grey."""
    picture = Image.new("RGB", (width, height), BLANK)
    draw = ImageDraw.Draw(picture)
    for start in range(-height, width, 6):
        draw.line((start, height, start + height, 0), fill=HATCH)
    return picture
