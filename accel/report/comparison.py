"""Two clips beside each other: how near they are, frame by frame, and whether one of them flickers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .curves import Curve
from .drawing import framed, stack
from .figures import ranges
from .metrics import SSIM_WINDOW, decibel, frame_ssim
from .pictures import amplification

PSNR_COLOUR, SSIM_COLOUR = (0, 114, 178), (190, 84, 30)
PLOT_WIDTH, PLOT_HEIGHT = 1200, 260
# A picture has no larger values, and products of their squares overflow: such a frame counts as not finite.
LARGEST = 1e6


@dataclass(frozen=True)
class Comparison:
    """errors: mean squared error of each frame. ssims: structural similarity of each. Both are NaN where a frame is not
    finite in both clips. flicker: root mean square, over all pixels and pairs of successive finite frames, of the
    difference between the two clips' changes from frame to frame; 0 without such a pair. broken_reference, broken_test:
    numbers of the frames that are not finite there."""

    errors: tuple[float, ...]
    ssims: tuple[float, ...]
    flicker: float
    broken_reference: tuple[int, ...] = ()
    broken_test: tuple[int, ...] = ()

    @property
    def psnrs(self) -> tuple[float, ...]:
        """Of each frame in dB; infinite where it is identical."""
        return tuple(map(decibel, self.errors))

    @property
    def psnr(self) -> float:
        """Mean over the finite frames that differ, in dB; infinite where none does."""
        known = [value for value in self.psnrs if math.isfinite(value)]
        return _mean(known) if known else math.inf

    @property
    def ssim(self) -> float:
        """Mean over the finite frames."""
        return _mean(_compared(self.ssims))

    @property
    def gain(self) -> int:
        """What the difference is multiplied by to be seen."""
        return amplification(math.sqrt(_mean(_compared(self.errors))))

    def text(self) -> str:
        frames, compared = len(self.errors), len(_compared(self.errors))
        lines = [self._psnr_line(), f"SSIM: {self.ssim:.4f} (mean), {_lowest(self.ssims, '.4f')}"]
        lines.append(f"flicker: {self.flicker:.5f}" if compared > 1 else "flicker: 0, one frame has nothing to flicker")
        shown = f"difference x {self.gain}" if any(_compared(self.errors)) else "no difference"
        size = f"{frames} frames" if frames > 1 else "1 frame"
        lines.append(f"{size}; side by side: reference, test, {shown}")
        if compared < frames:
            lines.append(
                f"not finite: {frames - compared} of {frames} frames, left out of all numbers "
                f"(reference: {_named(self.broken_reference)}; test: {_named(self.broken_test)})"
            )
        return "\n".join(lines)

    def _psnr_line(self) -> str:
        same = self.errors.count(0.0)
        if same == len(_compared(self.errors)):
            return f"PSNR: {self._identical()}"
        line = f"PSNR: {self.psnr:.2f} dB (mean), {_lowest(self.psnrs, '.2f')}"
        return f"{line}; identical frames, left out of the mean: {same}" if same else line

    def _identical(self) -> str:
        same = self.errors.count(0.0)
        which = "the clips" if same == len(self.errors) else f"all frames that are finite ({same})"
        return f"infinite, {which} are identical"

    def curves(self) -> tuple[Curve, Curve]:
        """PSNR and SSIM over the number of the frame."""
        return (
            Curve("PSNR in dB", self.psnrs, PSNR_COLOUR, least_span=1.0, empty=self._identical()),
            Curve("SSIM", self.ssims, SSIM_COLOUR, least_span=0.01, top=1.0),
        )

    def plot(self) -> Image.Image:
        """The curves, one below the other."""
        return framed(stack([curve.draw(PLOT_WIDTH, PLOT_HEIGHT) for curve in self.curves()], gap=20), 30)


def compare(reference: Tensor, test: Tensor, tick: Callable[[], None] = lambda: None) -> Comparison:
    """Clips [T, H, W, C] in 0..1, frame by frame: beside them it needs memory for a few frames only.

    tick: called after each frame. Raises ValueError, naming the clip or both, unless they are of floating point and of
    one shape, with frames as large as the window of SSIM, one of them finite in both.
    """
    _check(reference, test)
    broken_reference, broken_test = _broken(reference), _broken(test)
    broken, frames = {*broken_reference, *broken_test}, len(reference)
    if len(broken) == frames:
        raise ValueError(
            f"expected a frame that is finite in both clips, found {len(broken_reference)} of {frames} frames of "
            f"reference and {len(broken_test)} of test that are not"
        )
    errors, ssims, flickers = [], [], []
    before = None
    for frame, (a, b) in enumerate(zip(reference, test, strict=True)):
        if frame in broken:
            errors.append(math.nan)
            ssims.append(math.nan)
            before = None
        else:
            error = b.float() - a.float()
            errors.append(_mean_square(error))
            ssims.append(frame_ssim(a.movedim(-1, 0), b.movedim(-1, 0)))
            if before is not None:
                # The difference of the changes is the change of the difference.
                flickers.append(_mean_square(error - before))
            before = error
        tick()
    flicker = math.sqrt(_mean(flickers)) if flickers else 0.0
    return Comparison(tuple(errors), tuple(ssims), flicker, broken_reference, broken_test)


def side_by_side(reference: Tensor, test: Tensor, gain: int) -> Tensor:
    """Reference, test and `gain` times their absolute difference, fp32 [T, H, 3 W, C]; of 4 channels the first 3.

    NaN is black, and the difference there as large as it can be shown.
    """
    frames, height, width, channels = reference.shape
    channels = min(channels, 3)
    result = torch.empty(frames, height, 3, width, channels)
    for row, a, b in zip(result, reference[..., :channels], test[..., :channels], strict=True):
        row[:, 0], row[:, 1] = a.nan_to_num(0, 1, 0), b.nan_to_num(0, 1, 0)
        row[:, 2] = ((b.float() - a.float()).abs() * gain).nan_to_num(1, 1).clamp(0, 1)
    return result.flatten(2, 3)


def _check(reference: Tensor, test: Tensor) -> None:
    for name, clip in (("reference", reference), ("test", test)):
        if clip.ndim != 4 or not clip.is_floating_point():
            kind = str(clip.dtype).removeprefix("torch.")
            raise ValueError(f"{name}: expected frames [T, H, W, C] in 0..1, found {list(clip.shape)} of {kind}")
    if reference.shape != test.shape:
        raise ValueError(f"the clips must be alike: reference has {_described(reference)}, test has {_described(test)}")
    frames, height, width, channels = reference.shape
    if not frames or not channels:
        raise ValueError(f"expected at least one frame with one channel to compare, found {_described(reference)}")
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(
            f"expected frames of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, the window of SSIM, found "
            f"{width} x {height}"
        )


def _described(clip: Tensor) -> str:
    frames, height, width, channels = clip.shape
    return f"{frames} frames of {width} x {height} pixels with {channels} channels"


def _broken(clip: Tensor) -> tuple[int, ...]:
    """Numbers of the frames that are not finite."""
    # The largest absolute value, NaN where there is one: NaN is not below the limit.
    largest = [torch.linalg.vector_norm(frame.float(), torch.inf).item() for frame in clip]
    return tuple(frame for frame, value in enumerate(largest) if not value <= LARGEST)


def _mean_square(x: Tensor) -> float:
    """Summed in fp64: 241 frames of millions of pixels add up."""
    return x.square().mean(dtype=torch.float64).item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _compared(values: Sequence[float]) -> list[float]:
    """Without the frames that are not finite."""
    return [value for value in values if not math.isnan(value)]


def _lowest(values: tuple[float, ...], digits: str) -> str:
    lowest = min(_compared(values))
    return f"lowest {lowest:{digits}} in frame {values.index(lowest)}"


def _named(frames: tuple[int, ...]) -> str:
    """Numbers of frames, in ranges."""
    return ranges(frames) or "none"
