"""What one call may spend: the budget of its layer, as a profile and the guard have changed it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Spending:
    """top_p: one number for all heads, or fp32 [H] on the call's device, one for each. everything: whether all heads
    keep all. floor, max_density: as in `Budget`."""

    top_p: float | Tensor
    everything: bool
    floor: float
    max_density: float
