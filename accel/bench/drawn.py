"""A drawn clip for machines without a video: textures that move over each other, in any size and length."""

from __future__ import annotations

import torch
from torch import Tensor

DISCS = 12
OCTAVES = (4, 8, 16, 32, 64)
GRAIN = 0.02


def drawn_frames(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """`count` frames fp32 [T, 3, height, width] in 0..1: a cloudy background that pans, and discs of other clouds
    that cross it, each at its own speed and size, all with a grain of their own: no two tokens see the same pixels."""
    random = torch.Generator().manual_seed(seed)

    def clouds() -> Tensor:
        """Noise of all sizes over twice the picture: fp32 [3, 2 * height, 2 * width] in 0..1."""
        total = torch.zeros(1, 3, 2 * height, 2 * width)
        for cells in OCTAVES:
            noise = torch.rand(1, 3, cells, cells, generator=random)
            total += torch.nn.functional.interpolate(noise, total.shape[2:], mode="bicubic") / cells**0.5
        low, high = total.aminmax()
        return ((total - low) / (high - low))[0]

    textures = torch.stack([clouds() for _ in range(3)])
    start, speed = torch.rand(2, DISCS, 2, generator=random)
    radius = 0.05 + 0.15 * torch.rand(DISCS, generator=random)
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    frames = torch.empty(count, 3, height, width)
    for number in range(count):
        time = number / max(count - 1, 1)
        down, right = int(time * height / 2), int(time * width / 2)
        frames[number] = textures[0, :, down : down + height, right : right + width]
        for disc in range(DISCS):
            # What leaves the picture comes back on the other side.
            place = (start[disc] + (speed[disc] - 0.5) * time).remainder(1)
            inside = ((y - place[0]) ** 2 + (x - place[1]) ** 2) < radius[disc] ** 2
            paint = textures[1 + disc % 2, :, down : down + height, right : right + width].flip(1)
            frames[number] = torch.where(inside, paint, frames[number])
        frames[number] += GRAIN * torch.rand(3, height, width, generator=random)
    return frames.clamp_(max=1)
