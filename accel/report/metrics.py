"""How near one clip is to another."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

# Pixels of the Gaussian window of SSIM (standard deviation 1.5), as in Wang et al. 2004.
SSIM_WINDOW = 11


def decibel(error: float) -> float:
    """PSNR in dB for a mean squared error of values in 0..1; infinite for 0. The definition of kornia.metrics.psnr."""
    return math.inf if error == 0 else -10 * math.log10(error)


def psnr(reference: Tensor, test: Tensor) -> float:
    """Peak signal to noise ratio in dB of clips in 0..1 of one shape, over all their values; infinite if equal."""
    return decibel((reference.double() - test.double()).square().mean().item())


def ssim(reference: Tensor, test: Tensor) -> float:
    """Mean structural similarity of clips [T, C, H, W] in 0..1, the mean of `frame_ssim`."""
    return torch.tensor([frame_ssim(a, b) for a, b in zip(reference, test, strict=True)]).mean().item()


def frame_ssim(reference: Tensor, test: Tensor) -> float:
    """Mean structural similarity of frames [C, H, W] in 0..1, each channel by itself, by kornia.metrics.ssim.

    Wang et al. 2004 with their Gaussian window; windows over the border are left out. H and W are at least
    SSIM_WINDOW. Raises ImportError, with the remedy, where kornia cannot be imported.
    """
    try:
        from kornia.metrics import ssim  # not with the module: it is heavy, and only ComfyUI brings it
    except ImportError as error:
        raise ImportError(
            f"SSIM needs kornia, which ComfyUI's requirements bring, and it cannot be imported ({error}): run "
            f'"{sys.executable}" -m pip install kornia'
        ) from error

    # Contiguous: kornia is then several times faster on the CPU. eps: it would lower the score of black frames.
    frames = (frame[None].float().contiguous() for frame in (reference, test))
    return ssim(*frames, SSIM_WINDOW, padding="valid", eps=0.0).mean().item()
