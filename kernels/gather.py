"""Keys in chunks: the memory layout and the lists that the attention kernel reads.

The rows of a (batch, head) are gathered block by block, each block starting at a row that is a multiple of
the chunk's height. A chunk therefore belongs to one block, and "which key blocks does this query block keep"
becomes a list of chunk ids that the attention loop walks densely: no search in the loop, no token-level list,
less than a chunk of padding rows a block.

Chunks have CHUNK rows, which suits blocks of any size. Where blocks nearly fill it they may have TALL rows: then a
chunk is all that a step of the attention loop reads, and lies in one piece.

Terms: an *order* is a permutation of the tokens, int32, position -> token; *offsets* [R, blocks + 1] cut each
of the R orders into blocks; *index* [B, H] says which order a (batch, head) uses.
"""

import torch
from torch import Tensor

from . import registry

CHUNK = 16
TALL = 64
LIVE_BITS = 7  # live rows of a chunk, 0..TALL, in the low bits of a list entry
FILLED = 8  # lists are filled to a multiple of this many entries: no step of the attention loop reads more at once
ALIGNED = 16  # in memory a list begins at a multiple of so many entries, so that those of a step are one load


def chunk_layout(
    offsets: Tensor, length: int, chunk: int = CHUNK, capacity: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut every block of every order into chunks of at most `chunk` positions. Static shapes, no sync.

    offsets: int32 [R, blocks + 1], non-decreasing, offsets[:, -1] <= length. capacity: the most chunks that any
    order makes, NC, where the caller knows it: what is beyond it would be lost. Else the length bounds it:
    NC = (length + (chunk - 1) * blocks) // chunk.

    Returns int32 [R, NC] each: the block of a chunk (-1: chunk not used), its first position in the order,
    and its live rows 0..chunk.
    """
    rows, blocks = offsets.shape[0], offsets.shape[1] - 1
    if capacity is None:
        capacity = (length + (chunk - 1) * blocks) // chunk
    offsets = offsets.long()
    per_block = (offsets.diff(dim=1) + chunk - 1) // chunk
    ends = per_block.cumsum(dim=1)
    ids = torch.arange(capacity, device=offsets.device).expand(rows, capacity).contiguous()
    block = torch.searchsorted(ends, ids, right=True)
    used = block < blocks
    safe = block.clamp(max=blocks - 1)
    nth = ids - (ends - per_block).gather(1, safe)
    start = torch.where(used, offsets.gather(1, safe) + nth * chunk, 0)
    live = torch.where(used, (offsets.gather(1, safe + 1) - start).clamp(max=chunk), 0)
    return torch.where(used, block, -1).int(), start.int(), live.int()


def gather_chunks(
    x: Tensor,
    tokens: Tensor,
    index: Tensor,
    chunk_start: Tensor,
    chunk_live: Tensor,
    chunk: int = CHUNK,
    *,
    backend: str,
) -> Tensor:
    """Rows of x in chunk layout.

    x: [B, H, N, D], any strides with D dense; tokens: int32 [R, L]; index: int32 [B, H]; chunk_start and
    chunk_live: int32 [R, NC] from `chunk_layout` with the same `chunk`, the rows of one.

    Returns a contiguous [B, H, NC * chunk, D] of x's dtype; rows beyond a chunk's live ones are zero.
    """
    run = {"triton": _gather_op, "reference": _gather_reference}[backend]
    return run(x, tokens, index, chunk_start, chunk_live, chunk)


def chunk_lists(
    keep: Tensor, chunk_block: Tensor, chunk_live: Tensor, index: Tensor, *, backend: str
) -> tuple[Tensor, Tensor]:
    """Per query block the chunks of the key blocks it keeps, in ascending order.

    keep: bool [B, H, QB, KB], may be an expanded view; chunk_block and chunk_live: int32 [R, NC]; index:
    int32 [B, H].

    Returns entries int32 [B, H, QB, NC rounded up to ALIGNED], each (chunk id << LIVE_BITS) | live rows, and counts
    int32 [B, H, QB]. Beyond a count other than 0, up to the next multiple of FILLED, the last chunk comes again without
    live rows: who reads that far touches no chunk that is not kept. Entries beyond are undefined.
    """
    return {"triton": _lists_op, "reference": _lists_reference}[backend](keep, chunk_block, chunk_live, index)


def list_room(chunks: int) -> int:
    """Entries in memory for a list of at most so many."""
    return -(-chunks // ALIGNED) * ALIGNED


def _gather_reference(
    x: Tensor, tokens: Tensor, index: Tensor, chunk_start: Tensor, chunk_live: Tensor, chunk: int
) -> Tensor:
    rows, capacity = chunk_start.shape
    lane = torch.arange(chunk, device=x.device)
    live = (lane < chunk_live[..., None]).view(rows, capacity * chunk)
    position = torch.where(live, (chunk_start[..., None] + lane).view(rows, -1), 0)
    token = tokens.long().gather(1, position)[index]
    out = x.gather(2, token[..., None].expand(*token.shape, x.shape[-1]))
    return torch.where(live[index][..., None], out, 0)


def _gather_fake(
    x: Tensor, tokens: Tensor, index: Tensor, chunk_start: Tensor, chunk_live: Tensor, chunk: int
) -> Tensor:
    batch, heads, _, dim = x.shape
    return x.new_empty(batch, heads, chunk_start.shape[1] * chunk, dim)


def _gather_triton(
    x: Tensor, tokens: Tensor, index: Tensor, chunk_start: Tensor, chunk_live: Tensor, chunk: int
) -> Tensor:
    from .triton.gather import launch_gather

    return launch_gather(x, tokens, index, chunk_start, chunk_live, chunk)


_gather_op = registry.custom_op("gather_chunks", _gather_triton, _gather_fake)


def _lists_reference(keep: Tensor, chunk_block: Tensor, chunk_live: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, queries, _ = keep.shape
    capacity = chunk_block.shape[1]
    block = chunk_block.long()[index][:, :, None].expand(batch, heads, queries, capacity)
    kept = keep.gather(3, block.clamp(min=0)) & (block >= 0)
    # Where a chunk goes in its list; a chunk that is not kept goes to a column that is cut off.
    room = list_room(capacity)
    place = torch.where(kept, kept.cumsum(3) - 1, room)
    chunk = torch.arange(capacity, device=keep.device, dtype=torch.int32)
    last = torch.where(kept, chunk, 0).amax(3, keepdim=True)
    entries = (last << LIVE_BITS).expand(-1, -1, -1, room + 1).contiguous()
    entry = (chunk << LIVE_BITS) | chunk_live[index][:, :, None]
    entries.scatter_(3, place, entry.expand_as(place))
    return entries[..., :room].contiguous(), kept.sum(3, dtype=torch.int32)


def _lists_fake(keep: Tensor, chunk_block: Tensor, chunk_live: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    entries = keep.new_empty(*keep.shape[:3], list_room(chunk_block.shape[1]), dtype=torch.int32)
    return entries, keep.new_empty(keep.shape[:3], dtype=torch.int32)


def _lists_triton(keep: Tensor, chunk_block: Tensor, chunk_live: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    from .triton.gather import launch_lists

    entries, counts = _lists_fake(keep, chunk_block, chunk_live, index)
    launch_lists(keep, chunk_block, chunk_live, index, entries, counts, live_bits=LIVE_BITS, filled=FILLED)
    return entries, counts


_lists_op = registry.custom_op("chunk_lists", _lists_triton, _lists_fake)


def one_block(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, offsets and index of 64 tokens in one block, for one head: what trials of operations take."""
    tokens = torch.arange(64, dtype=torch.int32, device=device)[None]
    return tokens, tokens[:, :2] * 64, tokens.new_zeros(1, 1)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call of each kernel (registry.trial_problem)."""
    tokens, offsets, index = one_block(device)
    block, start, live = chunk_layout(offsets, 64)
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    gather_chunks(x, tokens, index, start, live, backend="triton")
    chunk_lists(tokens.new_ones(1, 1, 1, 1, dtype=torch.bool), block, live, index, backend="triton")
