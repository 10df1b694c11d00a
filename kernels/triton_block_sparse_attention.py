"""Triton kernel of block_sparse_attention.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import registry
from .gather import CHUNK, LIVE_BITS, chunk_layout


class Config(NamedTuple):
    """Queries and keys of one tile, warps of a program, pipeline stages of the key loop."""

    queries: int
    keys: int
    warps: int
    stages: int


# By head dimension, then by chip. Chosen by what compiles without spills within shared memory.
CONFIGS = {
    128: {
        "sm_80": Config(128, 32, 8, 3),
        "sm_86": Config(128, 32, 8, 3),
        "sm_89": Config(128, 32, 8, 3),
        "sm_90": Config(128, 64, 8, 3),
        "sm_100": Config(128, 128, 8, 2),
        "sm_120": Config(128, 32, 8, 3),
        "gfx942": Config(128, 64, 4, 1),
        "gfx1100": Config(64, 16, 8, 1),
        "gfx1201": Config(64, 32, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
    64: {
        "sm_80": Config(128, 64, 8, 3),
        "sm_86": Config(128, 64, 8, 2),
        "sm_89": Config(128, 64, 8, 2),
        "sm_90": Config(128, 128, 8, 2),
        "sm_100": Config(128, 128, 8, 2),
        "sm_120": Config(128, 64, 8, 2),
        "gfx942": Config(128, 64, 4, 1),
        "gfx1100": Config(128, 32, 8, 1),
        "gfx1201": Config(64, 64, 4, 1),
        "interpreter": Config(32, 32, 4, 1),
    },
}


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    offsets: Tensor,
    index: Tensor,
    entries: Tensor,
    counts: Tensor,
    scale: float,
    return_lse: bool,
    keep: Tensor | None = None,
    tail_keys: Tensor | None = None,
    tail_values: Tensor | None = None,
    log_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, N, D] over k, v [B, H, NC * CHUNK, D] in chunk layout, by the lists of
    gather.chunk_lists, and over the fields of a Tail where `keep` [B, H, QB, KB] has no block.

    Returns out [B, N, H, D] and lse fp32 [B, H, N] (of no elements if not asked for).
    """
    batch, heads, length, dim = q.shape
    config = registry.nearest(CONFIGS[dim], registry.architecture(q.device))
    # A query tile never crosses a block: tiles are the chunks of the query order.
    tile_block, tile_start, tile_live = chunk_layout(offsets, length, config.queries)
    tiles = tile_block.shape[1]
    out = q.new_empty(batch, length, heads, dim)
    lse = q.new_empty((batch, heads, length) if return_lse else (0,), dtype=torch.float32)
    with_tail = keep is not None
    if not with_tail:  # never read then
        keep, tail_keys, tail_values, log_sizes = counts[None], k, v, lse
    with torch.cuda.device_of(q):
        _attend[(tiles, batch * heads)](
            q,
            k,
            v,
            out,
            lse,
            tokens.contiguous(),
            index.contiguous(),
            tile_block,
            tile_start,
            tile_live,
            entries,
            counts,
            keep,
            tail_keys.contiguous(),
            tail_values.contiguous(),
            log_sizes.contiguous(),
            *q.stride()[:3],
            *keep.stride(),
            heads,
            length,
            tiles,
            offsets.shape[1] - 1,
            entries.shape[3],
            keep.shape[3],
            scale * math.log2(math.e),
            DIM=dim,
            QUERIES=config.queries,
            KEYS=config.keys,
            CHUNK=CHUNK,
            LIVE_BITS=LIVE_BITS,
            LSE=return_lse,
            TAIL=with_tail,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out, lse


@triton.jit
def _add_keys(top, total, acc, logits, values):
    """One step of the running softmax (base 2) of a query tile. A row may have nothing but -inf so far."""
    new_top = tl.maximum(top, tl.max(logits, axis=1))
    base = tl.where(new_top > float("-inf"), new_top, 0.0)
    weights = tl.exp2(logits - base[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return new_top, total, acc


@triton.jit(do_not_specialize=["heads", "length", "tiles", "blocks", "capacity", "key_blocks", "scale_log2"])
def _attend(
    q,
    k,
    v,
    out,
    lse,
    tokens,
    index,
    tile_block,
    tile_start,
    tile_live,
    entries,
    counts,
    keep,
    tail_keys,
    tail_values,
    log_sizes,
    q_batch,
    q_head,
    q_token,
    keep_batch,
    keep_head,
    keep_row,
    keep_column,
    heads,
    length,
    tiles,
    blocks,
    capacity,
    key_blocks,
    scale_log2,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    LIVE_BITS: tl.constexpr,
    LSE: tl.constexpr,
    TAIL: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    order = tl.load(index + pair).to(tl.int64)
    tile = order * tiles + tl.program_id(0)
    block = tl.load(tile_block + tile)
    if block < 0:  # the table has room for the worst case
        return

    dim = tl.arange(0, DIM)
    row = tl.arange(0, QUERIES)
    live_row = row < tl.load(tile_live + tile)
    position = tl.load(tile_start + tile) + row
    token = tl.load(tokens + order * length + position, mask=live_row, other=0).to(tl.int64)
    queries = tl.load(
        q + batch * q_batch + head * q_head + token[:, None] * q_token + dim[None, :],
        mask=live_row[:, None],
        other=0.0,
    )

    k += pair * capacity * (CHUNK * DIM)
    v += pair * capacity * (CHUNK * DIM)
    count = tl.load(counts + pair * blocks + block)
    entries += (pair * blocks + block) * capacity
    lane = tl.arange(0, KEYS)
    slot = lane // CHUNK
    within = lane % CHUNK

    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, DIM), tl.float32)
    for first in range(0, count, KEYS // CHUNK):
        # Beyond the end the last entry is read again and masked: a row that is not kept is never touched, so
        # what it holds (NaN in padding, say) cannot leak in, and the loads of k and v need no mask.
        entry = tl.load(entries + tl.minimum(first + slot, count - 1))
        live = (within < (entry & ((1 << LIVE_BITS) - 1))) & (first + slot < count)
        rows = (entry >> LIVE_BITS) * CHUNK + within
        keys = tl.load(k + rows[:, None] * DIM + dim[None, :])
        logits = tl.where(live[None, :], tl.dot(queries, tl.trans(keys)) * scale_log2, float("-inf"))
        values = tl.load(v + rows[:, None] * DIM + dim[None, :])
        top, total, acc = _add_keys(top, total, acc, logits, values)

    if TAIL:
        keep += batch * keep_batch + head * keep_head + block.to(tl.int64) * keep_row
        for first in tl.range(0, key_blocks, KEYS, num_stages=1):
            other = first + lane
            kept = tl.load(keep + other * keep_column, mask=other < key_blocks, other=1)
            dropped = kept == 0
            entry = pair * key_blocks + other
            bias = tl.load(log_sizes + entry, mask=dropped, other=float("-inf")) * 1.4426950408889634
            keys = tl.load(tail_keys + entry[:, None] * DIM + dim[None, :], mask=dropped[:, None], other=0.0)
            logits = tl.dot(queries, tl.trans(keys)) * scale_log2 + bias[None, :]
            values = tl.load(tail_values + entry[:, None] * DIM + dim[None, :], mask=dropped[:, None], other=0.0)
            top, total, acc = _add_keys(top, total, acc, logits, values)

    # Without any key the sum is 0: divide by 1, and top, still -inf, is the log-sum-exp.
    total = tl.where(total > 0, total, 1.0)
    result = acc / total[:, None]
    target = ((batch * length + token) * heads + head) * DIM
    tl.store(out + target[:, None] + dim[None, :], result.to(out.dtype.element_ty), mask=live_row[:, None])
    if LSE:
        natural = (top + tl.log2(total)) * 0.6931471805599453
        tl.store(lse + pair * length + token, natural, mask=live_row)
