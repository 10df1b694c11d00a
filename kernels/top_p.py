"""Which key blocks a query block keeps: top-p by mass, union a rank floor, under a cap on kept tokens.

Sources: top-p over size-weighted block scores is SVG2's (arXiv 2505.18875), the search for a threshold
instead of a sort Twilight's (arXiv 2502.02770). The threshold is searched on the bit patterns of the scores:
for non-negative floats they order as the floats do, so at most 31 halvings find it exactly.
"""

import math

import torch
from torch import Tensor

from . import registry


def select_blocks(
    scores: Tensor,
    sizes: Tensor,
    *,
    top_p: float | Tensor,
    floor: float,
    max_density: float = 1.0,
    limit: Tensor | None = None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Choose the key blocks of every query block (row).

    scores: fp32 [B, H, Q, C], the attention mass expected in each key block; a row sums to about 1, and a
    block without tokens scores 0. sizes: int32 [B, H, C], tokens of each key block. top_p: one number for all, or fp32
    [H] on the device of the scores, one for each head.

    A row keeps the smallest set of highest-scoring blocks whose mass reaches top_p (all non-empty ones when
    top_p >= 1), and at least the ceil(floor * C), but no fewer than one, highest-scoring blocks; blocks that
    tie at these thresholds are all kept. If that holds more than max_density of the tokens, or more than
    limit [B, H, Q] tokens where it is given instead, the lowest-scoring ones go (of equal ones the last) until it
    fits, but never the single best. Empty blocks are never kept.

    Returns keep bool [B, H, Q, C] and capped bool [B, H, Q], true where the cap removed something.
    """
    # Rounding, because 0.07 * 100 is a little more than 7 and must not make the floor 8.
    rank = max(1, math.ceil(round(floor * scores.shape[-1], 6)))
    # A sum of scores can fall short of 1, and "keep everything" must not depend on that: no mass reaches
    # infinity.
    if isinstance(top_p, Tensor):
        target, head_targets = math.inf, top_p.masked_fill(top_p >= 1, math.inf)
    else:
        target, head_targets = float(top_p) if top_p < 1 else math.inf, None
    if limit is None:
        limit = (sizes.sum(-1, keepdim=True).float() * max_density).floor().expand(scores.shape[:3])
    return {"triton": _select_op, "torch": _select_torch, "reference": _select_reference}[backend](
        scores, sizes, target, rank, limit.float(), head_targets
    )


def _threshold(bits: Tensor, weights: Tensor, target: Tensor | float) -> Tensor:
    """Per row the highest t in [0, max(bits)] with sum(weights[bits >= t]) >= target, or 0 without one."""
    low = torch.zeros_like(bits[..., :1])
    high = bits.amax(-1, keepdim=True).clamp(min=0) + 1
    for _ in range(31):
        middle = low + (high - low) // 2
        reached = torch.where(bits >= middle, weights, 0).sum(-1, keepdim=True) >= target
        # middle == low once the interval holds one value: neither bound moves then, unless 0 itself falls
        # short.
        low = torch.where(reached, middle, low)
        high = torch.where(reached, high, torch.maximum(middle, low + 1))
    return low


def _select_reference(
    scores: Tensor, sizes: Tensor, target: float, rank: int, limit: Tensor, head_targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    weights = sizes[:, :, None].float()
    real = weights > 0
    bits = torch.where(real, scores.view(torch.int32), -1)
    mass = target if head_targets is None else head_targets[:, None, None]
    threshold = torch.minimum(_threshold(bits, scores, mass), _threshold(bits, real.float(), rank))
    selected = bits >= threshold

    limit = limit[..., None]
    over = torch.where(selected, weights, 0).sum(-1, keepdim=True) > limit
    # The blocks at the boundary tie: together they are too much, above them everything fits.
    boundary = _threshold(bits, weights, limit + 1)
    above = torch.where(bits > boundary, weights, 0).sum(-1, keepdim=True)
    ties = bits == boundary
    fits = (bits > boundary) | (ties & (above + torch.where(ties, weights, 0).cumsum(-1) <= limit))
    best = real & (torch.arange(bits.shape[-1], device=bits.device) == bits.argmax(-1, keepdim=True))
    keep = torch.where(over, selected & (fits | best), selected)
    return keep, keep.sum(-1) < selected.sum(-1)


def _select_torch(
    scores: Tensor, sizes: Tensor, target: float, rank: int, limit: Tensor, head_targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The reference by sorting, which PyTorch does sooner than 31 halvings."""
    weights = sizes[:, :, None].expand_as(scores)
    real = weights > 0
    scores = scores.masked_fill(~real, -1)
    ordered, order = scores.sort(dim=-1, descending=True)
    mass = ordered.clamp(min=0).cumsum(-1, dtype=torch.float64)
    wanted = torch.full((), target) if head_targets is None else head_targets[:, None, None]
    last = scores.shape[-1] - 1

    def threshold(short: Tensor) -> Tensor:
        """The score at which a sum over the ordered row, `short` before, is reached; 0 where it never is."""
        place = short.sum(-1, keepdim=True)
        return ordered.gather(-1, place.clamp(max=last)).masked_fill_(place > last, 0).clamp_(min=0)

    ranked = torch.arange(1, last + 2, device=scores.device) < rank
    selected = scores >= torch.minimum(threshold(mass < wanted), threshold(ranked.expand_as(scores)))

    tokens = weights.gather(-1, order).cumsum(-1)
    limit = limit[..., None]
    over = torch.where(selected, weights, 0).sum(-1, keepdim=True) > limit
    # The blocks at the boundary tie: together they are too much, above them everything fits.
    boundary = threshold(tokens <= limit)
    above = torch.where(scores > boundary, weights, 0).sum(-1, keepdim=True)
    ties = (scores == boundary) & real
    fits = (scores > boundary) | (ties & (above + torch.where(ties, weights, 0).cumsum(-1) <= limit))
    best = real & (torch.arange(last + 1, device=scores.device) == scores.argmax(-1, keepdim=True))
    keep = torch.where(over, selected & (fits | best), selected)
    return keep, keep.sum(-1) < selected.sum(-1)


def _select_fake(
    scores: Tensor, sizes: Tensor, target: float, rank: int, limit: Tensor, head_targets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape, dtype=torch.bool), scores.new_empty(scores.shape[:3], dtype=torch.bool)


def _select_triton(
    scores: Tensor, sizes: Tensor, target: float, rank: int, limit: Tensor, head_targets: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    from .triton.top_p import launch_select

    return launch_select(scores, sizes, target, rank, limit, head_targets)


_select_op = registry.custom_op("select_blocks", _select_triton, _select_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: None) -> None:
    """The smallest call (registry.trial_problem)."""
    scores = torch.zeros(1, 1, 1, 16, dtype=dtype, device=device)
    sizes = torch.ones(1, 1, 16, dtype=torch.int32, device=device)
    select_blocks(scores, sizes, top_p=0.9, floor=0.1, backend="triton")
