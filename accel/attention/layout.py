"""Which tokens of a self-attention sequence are video, and how they lie on the latent grid."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenLayout:
    """Sequence `[prefix | video | suffix]`; the video tokens are a (T, H, W) raster, frame by frame.

    `prefix` and `suffix` count every other token of the sequence: text, reference images, in-context
    latents. They are attended densely by everyone and attend everyone.
    """

    grid: tuple[int, int, int]
    prefix: int = 0
    suffix: int = 0

    @property
    def video(self) -> int:
        """Number of video tokens, T * H * W."""
        return math.prod(self.grid)

    @property
    def extra(self) -> int:
        """Number of tokens that are not video."""
        return self.prefix + self.suffix

    @property
    def total(self) -> int:
        """Length of the whole sequence."""
        return self.video + self.extra


def spread(tokens: int, count: int, device: torch.device) -> torch.Tensor:
    """`count` positions of 0..tokens - 1, one from each of `count` equal stretches: int64 [count], rising.

    The place within a stretch follows the golden-ratio sequence, so that no axis of the video grid is
    favoured, no random generator is touched, and equal inputs give equal results. All are distinct when
    tokens >= count.
    """
    stretch = torch.arange(count, device=device, dtype=torch.float64)
    place = (stretch + (stretch * 0.6180339887498949).frac()) * (tokens / count)
    return place.long().clamp_(max=tokens - 1)
