"""What enters the linear layers of a model: the statistics by which quantisation smooths and weighs channels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ChannelStatistics(NamedTuple):
    """Inputs of one layer by channel, fp32 [C] each: largest absolute value, mean square. rows: how many were seen."""

    largest: Tensor
    mean_square: Tensor
    rows: int


class Activations:
    """Adds up what layers are given while `watching`, until it is `stopped`; never waits for the device."""

    def __init__(self) -> None:
        self.watching = False
        self.stopped = False
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def add(self, name: str, x: Tensor) -> None:
        """x [..., C], the input of the layer `name`."""
        if not self.watching or self.stopped:
            return
        x = x.detach().reshape(-1, x.shape[-1])
        if not len(x):
            # Nothing has no largest value, and says nothing.
            return
        # Norms, because they make no second tensor of this size.
        largest = torch.linalg.vector_norm(x, torch.inf, dim=0).float()
        squares, rows = torch.linalg.vector_norm(x, dim=0, dtype=torch.float32).square(), len(x)
        if name in self._sums:
            known = self._sums[name]
            largest, squares, rows = torch.maximum(known[0], largest), known[1] + squares, known[2] + rows
        self._sums[name] = largest, squares, rows

    def stop(self) -> None:
        """Forgets everything: a layer's inputs could not be added."""
        self.stopped = True
        self._sums.clear()

    def close(self) -> dict[str, ChannelStatistics]:
        """The statistics by layer, on the CPU; nothing is left on the device. Waits for it."""
        sums, self._sums = self._sums, {}
        return {
            name: ChannelStatistics(largest.cpu(), squares.cpu() / rows, rows)
            for name, (largest, squares, rows) in sums.items()
        }
