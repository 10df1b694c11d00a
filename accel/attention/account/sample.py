"""A few rows of a sparse result beside dense attention: what the guard judges by, and what Record measures with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.row_attention import row_attention
from ..layout import TokenLayout, spread


class Sample(NamedTuple):
    """A sparse call beside dense attention on a few rows; fp32 scalars. error, norm: squared, summed over the rows, of
    the difference and of dense attention. mass: what the kept blocks and their tail account for, the rows' mean."""

    error: Tensor
    norm: Tensor
    mass: Tensor


def sampled_rows(layout: TokenLayout, count: int, turn: int, device: torch.device) -> Tensor:
    """`count` video tokens, one from each of as many equal stretches: int64 on `device`. Another `turn` gives
    others. Never waits."""
    count = min(count, layout.video)
    places = spread(layout.video, count, device) + int(turn * 0.6180339887498949 * layout.video)
    return places % layout.video + layout.prefix


def sample(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rows: Tensor, scale: float, backend: str
) -> Sample:
    """The sparse result out [B, H, N, D] and its log-sum-exp lse fp32 [B, H, N] beside dense attention of the rows
    int64 [R]. Never waits."""
    exact, exact_lse = row_attention(q.index_select(2, rows), k, v, scale=scale, backend=backend)
    error = (out.index_select(2, rows).float() - exact).square().sum()
    # Of a plan with a tail lse holds the tail too, which never says more than the blocks that it stands for.
    mass = (lse.index_select(2, rows) - exact_lse).exp().mean()
    return Sample(error, exact.square().sum(), mass)
