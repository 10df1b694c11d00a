"""Halving and doubling of sides: a convolution, and beside it a shortcut without parameters (arXiv 2410.10733)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import INTERPOLATE, SHUFFLE, STRIDED, UNSHUFFLE
from .streaming import Strips, convolution, convolve, in_pairs, over, residual


def average(x: Tensor, channels: int) -> Tensor:
    """[B, C, h, W] -> [B, channels, h, W]: means of C / channels consecutive channels."""
    return x.unflatten(1, (channels, -1)).mean(2)


def repeat(x: Tensor, channels: int) -> Tensor:
    """[B, C, h, W] -> [B, channels, h, W]: every channel channels / C times in a row."""
    return x.repeat_interleave(channels // x.shape[1], 1)


def halving(kind: str, inside: int, outside: int, operations, **factory) -> nn.Conv2d:
    """The convolution of a step down."""
    if kind == STRIDED:
        return operations.Conv2d(inside, outside, 3, stride=2, padding=1, **factory)
    return operations.Conv2d(inside, outside // 4, 3, padding=1, **factory)


def halved(strips: Strips, conv: nn.Conv2d, kind: str) -> Strips:
    """[B, C, 2h, 2W] -> [B, outside, h, W]"""
    strips = convolution(strips, conv)
    if kind == UNSHUFFLE:
        strips = over(strips, 2, 2, lambda x: F.pixel_unshuffle(x, 2))
    return strips


def doubling(kind: str, inside: int, outside: int, operations, **factory) -> nn.Conv2d:
    """The convolution of a step up."""
    return operations.Conv2d(inside, outside * 4 if kind == SHUFFLE else outside, 3, padding=1, **factory)


def doubled(strips: Strips, conv: nn.Conv2d, kind: str) -> Strips:
    """[B, C, h, W] -> [B, outside, 2h, 2W]"""
    if kind == INTERPOLATE:
        return over(strips, 3, 1, lambda x: _nearest_then(conv, x, strips.whole), grow=2)
    return convolution(strips, conv).map(lambda x: F.pixel_shuffle(x, 2), grow=2)


def _nearest_then(conv: nn.Conv2d, x: Tensor, whole: bool) -> Tensor:
    if whole:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
    else:
        # Of its border rows, twice as high, the convolution reaches into the nearer half only.
        rows = torch.arange(1, 2 * x.shape[2] - 1, device=x.device) // 2
        x = x.index_select(2, rows).repeat_interleave(2, 3)
    return convolve(conv, x, whole)


class Down(nn.Module):
    """The step from a stage to the next."""

    def __init__(self, kind: str, inside: int, outside: int, operations, **factory) -> None:
        super().__init__()
        self.kind = kind
        self.outside = outside
        self.conv = halving(kind, inside, outside, operations, **factory)

    def forward(self, strips: Strips) -> Strips:
        def shortcut(x: Tensor) -> Tensor:
            return average(F.pixel_unshuffle(x, 2), self.outside)

        return residual(in_pairs(strips), lambda x: halved(x, self.conv, self.kind), before=shortcut)


class Up(nn.Module):
    """The step to a stage from the next."""

    def __init__(self, kind: str, inside: int, outside: int, operations, **factory) -> None:
        super().__init__()
        self.kind = kind
        self.outside = outside
        self.conv = doubling(kind, inside, outside, operations, **factory)

    def forward(self, strips: Strips) -> Strips:
        def shortcut(x: Tensor) -> Tensor:
            return F.pixel_shuffle(repeat(x, 4 * self.outside), 2)

        return residual(strips, lambda x: doubled(x, self.conv, self.kind), after=shortcut, grow=2)
