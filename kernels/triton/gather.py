"""Triton kernels of gather.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64  # rows copied by one program
LIST_TILE = 1024  # chunk ids looked at in one step


def launch_gather(
    x: Tensor, tokens: Tensor, index: Tensor, chunk_start: Tensor, chunk_live: Tensor, chunk: int
) -> Tensor:
    """See gather.gather_chunks."""
    batch, heads, _, dim = x.shape
    capacity = chunk_start.shape[1]
    out = x.new_empty(batch, heads, capacity * chunk, dim)
    with torch.cuda.device_of(x):
        _gather[(triton.cdiv(capacity * chunk, ROWS), batch * heads)](
            x,
            out,
            tokens.contiguous(),
            index.contiguous(),
            chunk_start.contiguous(),
            chunk_live.contiguous(),
            *x.stride()[:3],
            heads,
            tokens.shape[1],
            capacity,
            DIM=dim,
            ROWS=ROWS,
            CHUNK=chunk,
        )
    return out


def launch_lists(
    keep: Tensor,
    chunk_block: Tensor,
    chunk_live: Tensor,
    index: Tensor,
    entries: Tensor,
    counts: Tensor,
    *,
    live_bits: int,
    filled: int,
) -> None:
    """See gather.chunk_lists; the result goes to `entries` and `counts`. live_bits: the low bits of an entry, which
    hold the live rows; filled: lists are filled to a multiple of this many entries, a power of two."""
    batch, heads, queries, _ = keep.shape
    with torch.cuda.device_of(keep):
        _lists[(queries, batch * heads)](
            keep,
            entries,
            counts,
            chunk_block.contiguous(),
            chunk_live.contiguous(),
            index.contiguous(),
            *keep.stride(),
            heads,
            queries,
            chunk_block.shape[1],
            entries.shape[3],
            TILE=LIST_TILE,
            LIVE_BITS=live_bits,
            FILLED=filled,
        )


@triton.jit
def chunk_rows(row, tokens, chunk_start, chunk_live, capacity, CHUNK: tl.constexpr):
    """Whether each row of an order's chunk layout is live, and its token, int64."""
    chunk = row // CHUNK
    lane = row % CHUNK
    live = lane < tl.load(chunk_live + chunk, mask=chunk < capacity, other=0)
    position = tl.load(chunk_start + chunk, mask=live, other=0) + lane
    return live, tl.load(tokens + position, mask=live, other=0).to(tl.int64)


@triton.jit(do_not_specialize=["heads", "length", "capacity"])
def _gather(
    x,
    out,
    tokens,
    index,
    chunk_start,
    chunk_live,
    x_batch,
    x_head,
    x_token,
    heads,
    length,
    capacity,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    order = tl.load(index + pair).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < capacity * CHUNK
    live, token = chunk_rows(
        row, tokens + order * length, chunk_start + order * capacity, chunk_live + order * capacity, capacity, CHUNK
    )
    dim = tl.arange(0, DIM)
    source = x + (pair // heads) * x_batch + (pair % heads) * x_head
    values = tl.load(source + token[:, None] * x_token + dim[None, :], mask=live[:, None], other=0.0)
    target = out + pair * capacity * (CHUNK * DIM)
    tl.store(target + row[:, None] * DIM + dim[None, :], values, mask=inside[:, None])


@triton.jit(do_not_specialize=["keep_batch", "keep_head", "keep_query", "heads", "queries", "capacity", "room"])
def _lists(
    keep,
    entries,
    counts,
    chunk_block,
    chunk_live,
    index,
    keep_batch,
    keep_head,
    keep_query,
    keep_key,
    heads,
    queries,
    capacity,
    room,
    TILE: tl.constexpr,
    LIVE_BITS: tl.constexpr,
    FILLED: tl.constexpr,
):
    query = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    order = tl.load(index + pair).to(tl.int64)
    kept_row = keep + (pair // heads) * keep_batch + (pair % heads) * keep_head + query * keep_query
    target = entries + (pair * queries + query) * room
    count = 0
    last = 0
    for first in range(0, capacity, TILE):
        chunk = first + tl.arange(0, TILE)
        inside = chunk < capacity
        block = tl.load(chunk_block + order * capacity + chunk, mask=inside, other=-1)
        kept = tl.load(kept_row + block * keep_key, mask=block >= 0, other=0).to(tl.int32)
        live = tl.load(chunk_live + order * capacity + chunk, mask=inside, other=0)
        place = count + tl.cumsum(kept, axis=0) - kept
        tl.store(target + place, (chunk << LIVE_BITS) | live, mask=kept > 0)
        count += tl.sum(kept, axis=0)
        last = tl.maximum(last, tl.max(tl.where(kept > 0, chunk, 0), axis=0))
    lane = tl.arange(0, FILLED)
    tl.store(target + count + lane, last << LIVE_BITS, mask=lane < -count & (FILLED - 1))
    tl.store(counts + pair * queries + query, count)
