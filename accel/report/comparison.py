"""Two clips beside each other: how near they are, frame by frame, and whether one of them flickers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .curves import Curve
from .drawing import framed, stack
from .metrics import SSIM_WINDOW, decibel, frame_ssim
from .pictures import amplification

PSNR_COLOUR, SSIM_COLOUR = (0, 114, 178), (190, 84, 30)
PLOT_WIDTH, PLOT_HEIGHT = 1200, 260


@dataclass(frozen=True)
class Comparison:
    """errors: mean squared error of each frame. ssims: structural similarity of each. flicker: root mean square, over
    all pixels and pairs of successive frames, of the difference between the two clips' changes from frame to frame; 0
    of a single frame."""

    errors: tuple[float, ...]
    ssims: tuple[float, ...]
    flicker: float

    @property
    def psnrs(self) -> tuple[float, ...]:
        """Of each frame in dB; infinite where it is identical."""
        return tuple(map(decibel, self.errors))

    @property
    def psnr(self) -> float:
        """Mean over the frames that differ, in dB; infinite where none does."""
        known = [value for value in self.psnrs if math.isfinite(value)]
        return sum(known) / len(known) if known else math.inf

    @property
    def ssim(self) -> float:
        """Mean over the frames."""
        return sum(self.ssims) / len(self.ssims)

    @property
    def gain(self) -> int:
        """What the difference is multiplied by to be seen."""
        return amplification(math.sqrt(sum(self.errors) / len(self.errors)))

    def text(self) -> str:
        frames = len(self.errors)
        lines = [self._psnr_line(), f"SSIM: {self.ssim:.4f} (mean), {_lowest(self.ssims, '.4f')}"]
        lines.append(f"flicker: {self.flicker:.5f}" if frames > 1 else "flicker: 0, one frame has nothing to flicker")
        shown = f"difference x {self.gain}" if any(self.errors) else "no difference"
        size = f"{frames} frames" if frames > 1 else "1 frame"
        return "\n".join([*lines, f"{size}; side by side: reference, test, {shown}"])

    def _psnr_line(self) -> str:
        same = self.errors.count(0.0)
        if same == len(self.errors):
            return "PSNR: infinite, the clips are identical"
        line = f"PSNR: {self.psnr:.2f} dB (mean), {_lowest(self.psnrs, '.2f')}"
        return f"{line}; identical frames, left out of the mean: {same}" if same else line

    def plot(self) -> Image.Image:
        """PSNR and SSIM over the number of the frame."""
        curves = (
            Curve("PSNR in dB", self.psnrs, PSNR_COLOUR, least_span=1.0, empty="infinite: the clips are identical"),
            Curve("SSIM", self.ssims, SSIM_COLOUR, least_span=0.01, top=1.0),
        )
        return framed(stack([curve.draw(PLOT_WIDTH, PLOT_HEIGHT) for curve in curves], gap=20), 30)


def compare(reference: Tensor, test: Tensor, tick: Callable[[], None] = lambda: None) -> Comparison:
    """Clips [T, H, W, C] in 0..1, frame by frame: beside them it needs memory for a few frames only.

    tick: called after each frame. Raises ValueError, naming both, when their shapes differ, and when frames are smaller
    than the window of SSIM.
    """
    _check(reference, test)
    errors, ssims, flickers = [], [], []
    before = None
    for a, b in zip(reference, test, strict=True):
        error = b.float() - a.float()
        errors.append(_mean_square(error))
        ssims.append(frame_ssim(a.movedim(-1, 0), b.movedim(-1, 0)))
        if before is not None:
            # The difference of the changes is the change of the difference.
            flickers.append(_mean_square(error - before))
        before = error
        tick()
    return Comparison(tuple(errors), tuple(ssims), math.sqrt(sum(flickers) / len(flickers)) if flickers else 0.0)


def side_by_side(reference: Tensor, test: Tensor, gain: int) -> Tensor:
    """Reference, test and `gain` times their absolute difference, fp32 [T, H, 3 W, C]; of 4 channels the first 3."""
    frames, height, width, channels = reference.shape
    channels = min(channels, 3)
    result = torch.empty(frames, height, 3, width, channels)
    for row, a, b in zip(result, reference[..., :channels], test[..., :channels], strict=True):
        row[:, 0], row[:, 1] = a, b
        row[:, 2] = ((b.float() - a.float()).abs() * gain).clamp(0, 1)
    return result.flatten(2, 3)


def _check(reference: Tensor, test: Tensor) -> None:
    if reference.shape != test.shape:
        raise ValueError(f"the clips must be alike: reference has {_described(reference)}, test has {_described(test)}")
    height, width = reference.shape[1:3]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"expected frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, the window of SSIM, found "
            f"{width} x {height}"
        )


def _described(clip: Tensor) -> str:
    frames, height, width, channels = clip.shape
    return f"{frames} frames of {width} x {height} pixels with {channels} channels"


def _mean_square(x: Tensor) -> float:
    """Summed in fp64: 241 frames of millions of pixels add up."""
    return x.square().mean(dtype=torch.float64).item()


def _lowest(values: tuple[float, ...], digits: str) -> str:
    frame = min(range(len(values)), key=values.__getitem__)
    return f"lowest {values[frame]:{digits}} in frame {frame}"
