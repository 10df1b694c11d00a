"""Telling latents apart: which run made this one?"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

VALUES = 1024
# Half precision on the way to the next node may round a latent.
_ROUNDING = 1e-2


class Mark(NamedTuple):
    """A few values spread over a latent, and how many it has."""

    size: int
    values: tuple[float, ...]

    def distance(self, other: Mark) -> float | None:
        """Largest difference beside the largest value; None where they are no roundings of one latent."""
        if self.size != other.size:
            return None
        pairs = list(zip(self.values, other.values, strict=True))
        apart = max((abs(a - b) for a, b in pairs), default=0.0)
        scale = max((abs(a) for a, _ in pairs), default=0.0)
        return apart / (scale or 1.0) if apart <= _ROUNDING * scale else None


def mark(latent: Tensor) -> Mark:
    """The mark of a latent tensor, or of ComfyUI's nested one (video and sound), packed or not. Waits for the
    device."""
    parts = latent.unbind() if latent.is_nested else [latent]
    flat = torch.cat([part.flatten(1) for part in parts], dim=1).flatten()
    place = torch.linspace(0, flat.numel() - 1, min(VALUES, flat.numel()), dtype=torch.float64).round().long()
    # A latent of NaN must be recognised too, and not as one of zeros.
    return Mark(flat.numel(), tuple(flat[place.to(flat.device)].float().nan_to_num(nan=1e6).tolist()))
