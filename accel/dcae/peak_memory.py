"""How much memory an encode or decode takes, so that strips can be chosen before it runs.

Counted are the tensors that are alive at once, weights and input aside. Workspace of the convolutions' own algorithms
is not: it depends on the library, and can be as large again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from .config import EVIT, INTERPOLATE, Config, Stage
from .layers import CHUNK
from .network import IMAGE

DECODE, ENCODE = "decode", "encode"


class _Step(NamedTuple):
    """Bytes of one operation on a strip, of the whole input it waits for, and of the rows that it keeps."""

    strip: int
    barrier: int = 0
    kept: int = 0


def peak_bytes(config: Config, part: str, height: int, width: int, rows: int | None, dtype: torch.dtype) -> int:
    """The most bytes alive while one image is decoded or encoded (`part`), its result included.

    height, width: of the latent; rows: latent rows in a strip, None for the whole at once.
    """
    steps = list(_steps(config, part, height, width, rows, dtype.itemsize))
    strips = rows is not None and rows < height
    waiting = [step.barrier for step in steps]
    most = 0
    for index, step in enumerate(steps):
        # What one attention lets go of, the next one keeps.
        before = next((size for size in reversed(waiting[: index + 1]) if size), 0)
        after = next((size for size in waiting[index + 1 :] if size), 0)
        most = max(most, step.strip + (max(before, after) if strips else 0))
    if not strips:
        return most
    pixels = height * width
    result = pixels * (IMAGE * config.factor**2 if part == DECODE else config.latent_channels)
    # Convolutions follow each other closely and all keep their border rows; attention layers work one after another.
    kept = sum(step.kept for step in steps if not step.barrier)
    kept += max((step.kept for step in steps if step.barrier), default=0)
    return most + kept + result * dtype.itemsize


def rows_for(config: Config, part: str, height: int, width: int, dtype: torch.dtype, free_bytes: float) -> int | None:
    """The most latent rows in a strip with which one image stays within free_bytes: None where it does as a whole, and
    1 where nothing fits. height, width: of the latent."""
    if peak_bytes(config, part, height, width, None, dtype) <= free_bytes:
        return None
    fits, fails = 1, height
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if peak_bytes(config, part, height, width, middle, dtype) <= free_bytes:
            fits = middle
        else:
            fails = middle
    return fits


def _steps(config: Config, part: str, height: int, width: int, rows: int | None, itemsize: int) -> Iterator[_Step]:
    stages = config.decoder if part == DECODE else config.encoder
    rows = min(rows or height, height)
    order = range(len(stages))
    for index in reversed(order) if part == DECODE else order:
        stage, finer = stages[index], config.factor >> index
        wide = width * finer
        if not stage.depth:
            continue
        if part == DECODE and index + 1 < len(stages):
            coarse = stages[index + 1].width * rows * width * (finer // 2) ** 2
            fine = stage.width * rows * wide * finer
            kept = 3 * stages[index + 1].width * wide // 2
            yield _Step(_up(config.up, coarse, fine, rows < height) * itemsize, kept=kept * itemsize)
        for _ in range(stage.depth):
            yield _block(stage, rows * finer, height * finer, wide, itemsize)
        if part == ENCODE and index + 1 < len(stages):
            yield _Step(0, kept=4 * stage.width * wide * itemsize)


def _up(kind: str, coarse: int, fine: int, strips: bool) -> int:
    """Elements of a step up: input, window, convolution and shortcut."""
    window = coarse if strips else 0
    shortcut = coarse + 3 * fine
    if kind == INTERPOLATE:
        repeated = 2 * coarse if strips else 0
        return max(shortcut, coarse + window + 4 * coarse + max(repeated, fine))
    return shortcut


def _block(stage: Stage, rows: int, height: int, wide: int, itemsize: int) -> _Step:
    row = stage.width * wide * itemsize
    x = row * rows
    if stage.block == EVIT:
        # The feed-forward has 8 times the width, before and after its convolution; attention stays below.
        reach = max((1, *stage.scales)) // 2
        return _Step(17 * x, row * height if rows < height else 0, (2 * 8 + 1 + 7 * reach) * row)
    widened = min(CHUNK, x // itemsize) * (4 if itemsize == 4 else 8)
    return _Step(2 * x + max(x, widened), 0, 6 * row)
