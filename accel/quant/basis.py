"""Whether the two halves of a 4-bit weight belong together.

A known converter takes the low-rank branch L = proj_up proj_downᵀ from the plain weight W and subtracts it from the
smoothed one: its 4-bit part is W diag(smooth) - L instead of (W - L) diag(smooth). Nothing in the file says so, and
what such a layer computes has nothing to do with W (80 to 98 % error).
"""

from __future__ import annotations

from dataclasses import replace

from .weight4 import Weight4, residual

# Of the 4-bit part's size: a misfit below this is lost in the error of 4 bits, so there is nothing to find.
_SMALLEST = 0.1
_ROWS = 256


def misfit(weight: Weight4) -> float:
    """How much of E = L diag(smooth - 1) is left in the 4-bit part: about 0 where the halves belong together, about 1
    where the branch was subtracted in the wrong basis, exactly 0 where the two are one and the same.

    A branch that is the best one of its rank in either basis, or fitted to activations, has columns of proj_up to
    which the 4-bit part is orthogonal, so the projection of that part on E vanishes; a LoRA appended or merged later
    is unrelated to it. Measured on 1,350 layers of random weights from 64 x 64 to 1536 x 512 (plain, decaying, with
    outliers; five kinds of smoothing; ranks 8 and 32), of those with an E to speak of: -0.07 to 0.18 for branches of
    either basis, refined alternately, with a LoRA appended or merged, cut into q, k, v or fitted to activations; 0.91
    to 1.13 for mixed ones. Layers of SVDQuant's own exporter: -0.002. A mixed layer with a LoRA of its own size
    appended is not found.

    Looks at 256 output channels, which is some milliseconds for a large layer.
    """
    if weight.smooth is None or weight.low_rank is None:
        return 0.0
    down, up = weight.low_rank
    rows = slice(None, None, max(1, weight.shape[0] // _ROWS))
    channels = weight.channel_scale
    part = residual(
        replace(
            weight,
            codes=weight.codes[rows],
            scale=weight.scale[:, rows],
            zero=None if weight.zero is None else weight.zero[:, rows],
            channel_scale=channels if channels is None or len(channels) == 1 else channels[rows],
        )
    )
    wrong = up[rows].float() @ (down.float() * (weight.smooth.float() - 1)[:, None]).T
    size = wrong.square().sum()
    if size <= _SMALLEST**2 * part.square().sum():
        return 0.0
    return float((part * wrong).sum() / size)
