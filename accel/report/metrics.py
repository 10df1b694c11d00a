"""How near one clip is to another."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2


def psnr(reference: Tensor, test: Tensor) -> float:
    """Peak signal to noise ratio in dB of clips in 0..1 of one shape, over all their values; infinite if equal."""
    error = (reference.double() - test.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(reference: Tensor, test: Tensor) -> float:
    """Mean structural similarity of clips [T, C, H, W] in 0..1, each channel of each frame by itself.

    Wang et al. 2004 with their Gaussian window of 11 pixels; windows over the border are left out. H and W are at
    least 11.
    """
    offsets = torch.arange(_WINDOW) - _WINDOW // 2
    line = torch.exp(-offsets.square() / (2 * _SIGMA**2))
    line = (line / line.sum()).to(reference.device)
    scores = [_frame_ssim(a[:, None].float(), b[:, None].float(), line) for a, b in zip(reference, test, strict=True)]
    return torch.stack(scores).mean().item()


def _frame_ssim(a: Tensor, b: Tensor, line: Tensor) -> Tensor:
    """a, b: fp32 [C, 1, H, W]; line: the window's profile [11]."""

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    mean_a, mean_b = blur(a), blur(b)
    variance_a = blur(a * a) - mean_a * mean_a
    variance_b = blur(b * b) - mean_b * mean_b
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a * mean_a + mean_b * mean_b + _C1)
    structure = (2 * covariance + _C2) / (variance_a + variance_b + _C2)
    return (luminance * structure).mean()
