"""Triton kernel of block_sparse_attention.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import math
from typing import Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor

from .quantise import row_codes

# The largest attention weight in FP8 is 2^8: small ones then keep their precision. The normalisation undoes it.
FP8_EXPONENT = 8


class Config(Protocol):
    """What the kernel takes of an attention_configs.Config."""

    @property
    def queries(self) -> int: ...

    @property
    def keys(self) -> int: ...

    @property
    def warps(self) -> int: ...

    @property
    def stages(self) -> int: ...

    @property
    def descriptors(self) -> bool: ...


def launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    index: Tensor,
    *,
    tiles: tuple[Tensor, Tensor, Tensor],
    lists: tuple[Tensor, Tensor],
    tail: tuple[Tensor, Tensor, Tensor, Tensor] | None,
    steps: tuple[Tensor | None, Tensor | None, Tensor | None],
    scale: float,
    return_lse: bool,
    largest: float,
    chunk: int,
    live_bits: int,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """Attention of q [B, H, N, D] over k, v [B, H, NC * chunk, D] in chunk layout, by `lists` of gather.chunk_lists
    whose entries have `live_bits` low bits of live rows, and over a tail where its first tensor, keep [B, H, QB, KB],
    has no block; the others are the fields of a Tail.

    tokens [R, N], index [B, H]: the query order; tiles: its chunk layout, chunks of config.queries. steps: of keys, of
    the tail's keys and of the values, where these are at 8 bits; largest: code of 8-bit keys, 0 for 16-bit ones.
    config: for these tensors.

    Returns out [B, N, H, D] and lse fp32 [B, H, N] (of no elements if not asked for).
    """
    batch, heads, length, dim = q.shape
    entries, counts = lists
    key_steps, tail_steps, value_steps = steps
    tile_block, tile_start, tile_live = tiles
    out = q.new_empty(batch, length, heads, dim)
    lse = q.new_empty((batch, heads, length) if return_lse else (0,), dtype=torch.float32)
    keep, tail_keys, tail_values, log_sizes = (counts[None], k, v, lse) if tail is None else tail  # never read then
    with torch.cuda.device_of(q):
        _attend[(tile_block.shape[1], batch * heads)](
            q,
            _descriptor(k, chunk, dim) if config.descriptors else k,
            _descriptor(v, *(chunk, dim) if value_steps is None else (dim, chunk)) if config.descriptors else v,
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
            lse if key_steps is None else key_steps,
            lse if tail_steps is None else tail_steps,
            lse if value_steps is None else value_steps,
            *q.stride()[:3],
            *keep.stride(),
            heads,
            length,
            tile_block.shape[1],
            counts.shape[2],
            k.shape[2] // chunk,
            entries.shape[3],
            keep.shape[3],
            tail_keys.shape[2],
            scale * math.log2(math.e),
            DIM=dim,
            QUERIES=config.queries,
            KEYS=config.keys,
            CHUNK=chunk,
            DESCRIPTORS=config.descriptors,
            LIVE_BITS=live_bits,
            LSE=return_lse,
            TAIL=tail is not None,
            LARGEST=largest,
            EXPONENT=0 if value_steps is None else FP8_EXPONENT,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out, lse


def _descriptor(chunks: Tensor, rows: int, columns: int):
    """A contiguous tensor of chunks as a stack of blocks [rows, columns], one a chunk, for the chip's copy engine."""
    from triton.tools.tensor_descriptor import TensorDescriptor  # from Triton 3.4 on

    return TensorDescriptor.from_tensor(chunks.view(-1, columns), [rows, columns])


@triton.jit
def _logits(queries, query_steps, keys, key_steps):
    """Base-2 logits fp32 [Q, K] of keys [K, D], one step each; 16-bit keys have none."""
    logits = tl.dot(queries, tl.trans(keys)).to(tl.float32) * query_steps
    return logits if key_steps is None else logits * key_steps[None, :]


@triton.jit
def _load_values(values, rows, mask, DIM: tl.constexpr, CHUNK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Value rows [K, D]; of chunks that are stored transposed, 16 keys of a channel are one load. mask [K]: the same
    for all rows of such a chunk."""
    dim = tl.arange(0, DIM)
    if TRANSPOSED:
        # Which rows those are is read from memory: that a chunk's lie side by side has to be said.
        place = (rows // CHUNK) * (CHUNK * DIM) + rows % CHUNK
        place = tl.max_contiguous(tl.multiple_of(place, CHUNK), CHUNK)
        source = values + dim[:, None] * CHUNK + place[None, :]
        return tl.trans(tl.load(source) if mask is None else tl.load(source, mask=mask[None, :], other=0.0))
    source = values + rows[:, None] * DIM + dim[None, :]
    return tl.load(source) if mask is None else tl.load(source, mask=mask[:, None], other=0.0)


@triton.jit
def _add_keys(top, total, acc, logits, values, EXPONENT: tl.constexpr):
    """One step of the running softmax (base 2) of a query tile. A row may have nothing but -inf so far. total and acc
    carry a factor of 2^EXPONENT."""
    new_top = tl.maximum(top, tl.max(logits, axis=1))
    base = tl.where(new_top > float("-inf"), new_top, 0.0)
    weights = tl.exp2(logits - (base - EXPONENT)[:, None])
    shrink = tl.exp2(top - base)
    total = total * shrink + tl.sum(weights, axis=1)
    acc = tl.dot(weights.to(values.dtype), values, acc * shrink[:, None])
    return new_top, total, acc


@triton.jit(
    do_not_specialize=[
        "keep_batch",
        "keep_head",
        "keep_row",
        "heads",
        "length",
        "tiles",
        "blocks",
        "capacity",
        "key_blocks",
        "tail_rows",
        "scale_log2",
    ]
)
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
    key_steps,
    tail_steps,
    value_steps,
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
    room,
    key_blocks,
    tail_rows,
    scale_log2,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    CHUNK: tl.constexpr,
    DESCRIPTORS: tl.constexpr,
    LIVE_BITS: tl.constexpr,
    LSE: tl.constexpr,
    TAIL: tl.constexpr,
    LARGEST: tl.constexpr,
    EXPONENT: tl.constexpr,
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

    query_steps = scale_log2
    if LARGEST > 0:
        queries, query_steps = row_codes(queries.to(tl.float32), LARGEST, tail_keys.dtype.element_ty)
        query_steps = (query_steps * scale_log2)[:, None]

    if not DESCRIPTORS:
        k += pair * capacity * (CHUNK * DIM)
        v += pair * capacity * (CHUNK * DIM)
    first_chunk = (pair * capacity).to(tl.int32)  # descriptors count rows of all heads, in 32 bits
    key_steps += pair * capacity * CHUNK
    count = tl.load(counts + pair * blocks + block)
    entries += (pair * blocks + block) * room
    lane = tl.arange(0, KEYS)
    slot = tl.arange(0, KEYS // CHUNK)
    within = tl.arange(0, CHUNK)

    top = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    acc = tl.zeros((QUERIES, DIM), tl.float32)
    for first in range(0, count, KEYS // CHUNK):
        if DESCRIPTORS:  # a step is a chunk
            entry = tl.load(entries + first)
            chunk = entry >> LIVE_BITS
            live = lane < (entry & ((1 << LIVE_BITS) - 1))
            steps = tl.load(key_steps + chunk * CHUNK + lane) if LARGEST > 0 else None
            keys = k.load([(first_chunk + chunk) * CHUNK, 0])
        else:
            # A list that ends within a step is filled up with its last chunk, without live rows: a row that is not
            # kept is never touched, so what it holds (NaN in padding, say) cannot leak in, and the loads of k and v
            # need no mask. One entry a chunk is loaded, not one a row, and all of a step at once.
            entry = tl.load(entries + first + slot)
            place = (entry >> LIVE_BITS)[:, None] * CHUNK + within[None, :]
            live = tl.reshape(within[None, :] < (entry & ((1 << LIVE_BITS) - 1))[:, None], (KEYS,))
            steps = tl.reshape(tl.load(key_steps + place), (KEYS,)) if LARGEST > 0 else None
            rows = tl.reshape(place, (KEYS,))
            keys = tl.load(k + rows[:, None] * DIM + dim[None, :])
        logits = tl.where(live[None, :], _logits(queries, query_steps, keys, steps), float("-inf"))
        if not DESCRIPTORS:
            values = _load_values(v, rows, None, DIM, CHUNK, EXPONENT > 0)
        elif EXPONENT > 0:
            values = tl.trans(v.load([(first_chunk + chunk) * DIM, 0]))
        else:
            values = v.load([(first_chunk + chunk) * CHUNK, 0])
        top, total, acc = _add_keys(top, total, acc, logits, values, EXPONENT)

    if TAIL:
        keep += batch * keep_batch + head * keep_head + block.to(tl.int64) * keep_row
        tail_keys += pair * tail_rows * DIM
        tail_values += pair * tail_rows * DIM
        for first in tl.range(0, key_blocks, KEYS, num_stages=1):
            other = first + lane
            kept = tl.load(keep + other * keep_column, mask=other < key_blocks, other=1)
            dropped = kept == 0
            bias = tl.load(log_sizes + pair * key_blocks + other, mask=dropped, other=float("-inf"))
            steps = tl.load(tail_steps + pair * tail_rows + other, mask=dropped, other=0.0) if LARGEST > 0 else None
            keys = tl.load(tail_keys + other[:, None] * DIM + dim[None, :], mask=dropped[:, None], other=0.0)
            logits = _logits(queries, query_steps, keys, steps) + (bias * 1.4426950408889634)[None, :]
            # Whole chunks at 8 bits: what a kept block has there gets a weight of 0, and is NaN in NaN channels alone.
            needed = other // CHUNK < tail_rows // CHUNK if EXPONENT > 0 else dropped
            values = _load_values(tail_values, other, needed, DIM, CHUNK, EXPONENT > 0)
            top, total, acc = _add_keys(top, total, acc, logits, values, EXPONENT)

    # Without any key the sum is 0: divide by 1, and top, still -inf, is the log-sum-exp. A NaN among the logits is in
    # the sum, though a GPU's maxima drop it: its weight is NaN, and no later product or sum makes that a number again.
    # So both results are NaN, and the loops need not look for it.
    total = tl.where(total == 0, 1.0, total)
    result = acc / total[:, None]
    if EXPONENT > 0:
        result *= tl.load(value_steps + pair * DIM + dim)[None, :]
        if out.dtype.element_ty == tl.float16:  # rounded weights may add up to a little more than their sum
            result = tl.clamp(result, -65504.0, 65504.0, propagate_nan=tl.PropagateNan.ALL)
    target = ((batch * length + token) * heads + head) * DIM
    tl.store(out + target[:, None] + dim[None, :], result.to(out.dtype.element_ty), mask=live_row[:, None])
    if LSE:
        natural = (top + tl.log2(total) - EXPONENT) * 0.6931471805599453
        tl.store(lse + pair * length + token, natural, mask=live_row)
