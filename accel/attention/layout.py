"""Which tokens of a self-attention sequence are video, and how they lie on the latent grid."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
