"""Triton kernel of top_p.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor


def launch_select(
    scores: Tensor, sizes: Tensor, target: float, rank: int, limit: Tensor, head_targets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See top_p.select_blocks. target: the mass for all heads, or head_targets [H], contiguous, one for each."""
    batch, heads, queries, blocks = scores.shape
    scores = scores.contiguous()
    keep = scores.new_empty(scores.shape, dtype=torch.bool)
    capped = scores.new_empty(batch, heads, queries, dtype=torch.bool)
    width = triton.next_power_of_2(blocks)
    with torch.cuda.device_of(scores):
        _select[(queries, batch * heads)](
            scores,
            sizes,
            limit.contiguous(),
            head_targets,
            keep,
            capped,
            *sizes.stride(),
            heads,
            queries,
            blocks,
            target,
            rank,
            WIDTH=width,
            num_warps=min(16, max(1, width // 512)),
        )
    return keep, capped


@triton.jit
def _threshold(bits, weights, target):
    """Highest t in [0, max(bits)] with sum(weights[bits >= t]) >= target; 0 when no t reaches it."""
    low = 0
    high = tl.maximum(tl.max(bits, axis=0), 0) + 1
    while high - low > 1:
        middle = low + (high - low) // 2
        reached = tl.sum(tl.where(bits >= middle, weights, 0.0), axis=0) >= target
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit(do_not_specialize=["heads", "queries", "blocks", "target", "rank"])
def _select(
    scores,
    sizes,
    limits,
    head_targets,
    keep,
    capped,
    size_batch,
    size_head,
    size_block,
    heads,
    queries,
    blocks,
    target,
    rank,
    WIDTH: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    row = pair * queries + tl.program_id(0)
    block = tl.arange(0, WIDTH)
    inside = block < blocks
    score = tl.load(scores + row * blocks + block, mask=inside, other=0.0)
    size = sizes + (pair // heads) * size_batch + (pair % heads) * size_head
    weight = tl.load(size + block * size_block, mask=inside, other=0).to(tl.float32)
    real = weight > 0
    bits = tl.where(real, score.to(tl.int32, bitcast=True), -1)
    count = tl.where(real, 1.0, 0.0)

    if head_targets is not None:
        target = tl.load(head_targets + pair % heads)
    threshold = tl.minimum(_threshold(bits, score, target), _threshold(bits, count, rank))
    selected = bits >= threshold
    chosen = selected

    limit = tl.load(limits + row)
    if tl.sum(tl.where(selected, weight, 0.0), axis=0) > limit:
        boundary = _threshold(bits, weight, limit + 1)
        above = tl.sum(tl.where(bits > boundary, weight, 0.0), axis=0)
        ties = bits == boundary
        fits = (bits > boundary) | (ties & (above + tl.cumsum(tl.where(ties, weight, 0.0), axis=0) <= limit))
        top = bits == tl.max(bits, axis=0)
        best = real & (block == tl.min(tl.where(top, block, WIDTH), axis=0))
        chosen = selected & (fits | best)
    tl.store(keep + row * blocks + block, chosen, mask=inside)
    lost = tl.sum(tl.where(selected, 1, 0), axis=0) - tl.sum(tl.where(chosen, 1, 0), axis=0)
    tl.store(capped + row, lost > 0)
