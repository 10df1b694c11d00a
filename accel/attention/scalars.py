"""Numbers that a device is still computing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Scalars:
    """Rows of scalars, kept on their device in one table: to read them is one copy, and needs no memory there."""

    def __init__(self, width: int):
        self._width = width
        self._lengths: list[int] = []
        self._table: Tensor | None = None

    def add(self, scalars: Sequence[Tensor]) -> int:
        """The place of a new row of at most `width` scalars, which are kept in fp32. Never waits."""
        place = len(self._lengths)
        if self._table is None or place == len(self._table):
            table = scalars[0].new_empty(max(16, 2 * place), self._width, dtype=torch.float32)
            if self._table is not None:
                table[:place] = self._table
            self._table = table
        self._table[place, : len(scalars)] = torch.stack(list(scalars))
        self._lengths.append(len(scalars))
        return place

    def read(self) -> list[list[float]]:
        """The rows in the order in which they came. Waits for the device."""
        rows = [] if self._table is None else self._table[: len(self._lengths)].tolist()
        return [row[:length] for row, length in zip(rows, self._lengths, strict=True)]
