"""Attention over the key blocks that each query block keeps. Blocks have any size, empty ones included.

Masks of this kind: SVG2, arXiv 2505.18875. Keys and values are gathered into chunks (gather.py), and the
inner loop walks the kept chunks densely; queries are read and results written through the token order inside
the kernel. With a tail, each block that is not kept takes part as one pooled key and value (SVG-EAR, arXiv
2603.08982; Sol-Attn, arXiv 2607.24027), in the same softmax and the same kernel. With formats, queries and keys are
multiplied at 8 bits, and the weights with the values too if the formats say so (quantise.py).
"""

import torch
from torch import Tensor

from . import registry
from .attention_configs import choose_config, reads_tall_chunks
from .gather import CHUNK, LIVE_BITS, TALL, chunk_layout, chunk_lists, gather_chunks, list_room, one_block
from .gathered_attention import Order, Tail, attend_in_batches, attend_in_tasks
from .quantise import (
    LARGEST,
    Formats,
    QuantisedChunks,
    channel_codes,
    key_shift,
    quantise_chunks,
    row_codes,
    value_steps,
)

REFERENCE_ELEMENTS = 1 << 22  # logits the reference holds at once: few enough for a cache
GATHERED = 512 << 20  # bytes of gathered keys, values and lists that the Triton kernel has at once


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    query_tokens: Tensor,
    query_offsets: Tensor,
    query_index: Tensor,
    key_tokens: Tensor,
    key_offsets: Tensor,
    key_index: Tensor,
    key_tall_chunks: int | None = None,
    keep: Tensor,
    tail: Tail | None = None,
    formats: Formats | None = None,
    scale: float,
    return_lse: bool = False,
    backend: str,
) -> tuple[Tensor, Tensor | None]:
    """softmax(scale * q k^T) v, where query block i sees the tokens of the key blocks j with keep[..., i, j].

    q: [B, H, Nq, D]; k, v: [B, H, Nk, D]; one dtype, any strides with D dense.
    query_tokens [R, Nq], key_tokens [R', Nk]: int32, position -> token, a permutation in every row.
    query_offsets [R, QB + 1], key_offsets [R', KB + 1]: int32, non-decreasing from 0; block b of an order
    holds its positions offsets[b] .. offsets[b + 1] - 1. Query blocks cover all Nq positions; keys behind the
    last block are seen by nobody.
    query_index, key_index: int32 [B, H], the order (row) that a (batch, head) uses.
    key_tall_chunks: where few key blocks leave a part of their last TALL rows empty, the most chunks of that height
    that an order's blocks make; None where they do or where it is not known. It changes nothing but the speed.
    keep: bool [B, H, QB, KB], may be an expanded view.
    tail: adds to every query, for each block j that its block does not keep, one key with the logit
    scale * q . keys[j] + log_sizes[j] and the value values[j].
    formats: what is multiplied at 8 bits, the tail's keys and values included; None: nothing.

    Returns out [B, H, Nq, D] in q's dtype, laid out in memory as [B, Nq, H, D], and, if asked for, the
    natural-log log-sum-exp of the visible logits, the tail's included, fp32 [B, H, Nq]. A query that sees nothing
    gets 0 and -inf. One that meets a NaN, in its row of q or in a key that it sees, or a logit of inf gets NaN in all
    of both. A NaN in v reaches its channel of the queries that see it, or with 8-bit values of all of the head.
    """
    out, lse = {"triton": _triton, "torch": _torch, "reference": _reference}[backend](
        q,
        k,
        v,
        (query_tokens, query_offsets, query_index),
        (key_tokens, key_offsets, key_index),
        key_tall_chunks,
        keep,
        tail,
        formats,
        scale,
        return_lse,
    )
    if return_lse and formats is not None:  # the keys that were multiplied had lost their shift
        lost = (q.float() @ key_shift(k)[..., None]).squeeze(-1) * scale
        lse += lost.masked_fill_(lse == -torch.inf, 0)  # a query that sees nothing meets no NaN either
    return out, lse


def key_chunks(
    offsets: Tensor, length: int, tall_chunks: int | None, device: torch.device
) -> tuple[int, tuple[Tensor, Tensor, Tensor]]:
    """The rows of the chunks that the Triton kernel reads keys in on `device`, and their layout (gather.chunk_layout).

    offsets: int32 [R, blocks + 1] of orders of `length` keys; tall_chunks: block_sparse_attention's key_tall_chunks.
    """
    if tall_chunks is not None and reads_tall_chunks(registry.architecture(device)):
        return TALL, chunk_layout(offsets, length, TALL, tall_chunks)
    return CHUNK, chunk_layout(offsets, length)


def _triton(q, k, v, queries, keys, tall_chunks, keep, tail, formats, scale, return_lse):
    """As many heads at a time as GATHERED has room for, at least one: 720p needs gigabytes for all of them."""
    batch, heads, length, dim = q.shape
    tokens, offsets, index = keys
    layout = key_chunks(offsets, tokens.shape[1], tall_chunks, q.device)
    chunk, (block, _, _) = layout
    wide = sum(k.element_size() if form is None else form.itemsize for form in formats or (None, None))
    rows = block.shape[1] * chunk * dim * wide
    lists = keep.shape[2] * list_room(block.shape[1]) * torch.int32.itemsize
    turns = min(heads, -(-heads * batch * (rows + lists) // GATHERED))

    def attend(heads: slice):
        def of(x):
            return x[:, heads]

        return _attend(
            of(q),
            of(k),
            of(v),
            (*queries[:2], of(queries[2])),
            (tokens, of(index)),
            layout,
            of(keep),
            None if tail is None else Tail(*map(of, tail)),
            formats,
            scale,
            return_lse,
        )

    if turns == 1:
        return attend(slice(None))
    out = q.new_empty(batch, length, heads, dim).transpose(1, 2)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32) if return_lse else None
    for turn in range(turns):
        part = slice(heads * turn // turns, heads * (turn + 1) // turns)
        out[:, part], part_lse = attend(part)
        if lse is not None:
            lse[:, part] = part_lse
    return out, lse


def _attend(q, k, v, queries, keys, layout, keep, tail, formats, scale, return_lse):
    tokens, index = keys
    chunk, (block, start, live) = layout
    entries, counts = chunk_lists(keep, block, live, index, backend="triton")
    key_steps = tail_steps = channel_steps = None
    if formats is None:
        k = gather_chunks(k, tokens, index, start, live, chunk, backend="triton")
        v = gather_chunks(v, tokens, index, start, live, chunk, backend="triton")
    else:
        shift = key_shift(k)
        channel_steps = value_steps(v) if formats.values else None
        options = {"shift": shift, "steps": channel_steps, "formats": formats, "backend": "triton"}
        k, key_steps, v = quantise_chunks(k, v, tokens, index, start, live, chunk, **options)
        if tail is not None:
            tail_keys, tail_steps, tail_values = _in_chunks(tail, chunk, **options)
            tail = tail._replace(keys=tail_keys, values=tail_values)
    query_tokens, query_offsets, query_index = queries
    tail_keep, tail_keys, tail_values, tail_log_sizes = (None,) * 4 if tail is None else (keep, *tail)
    out, lse = _attend_op(
        q,
        k,
        v,
        query_tokens,
        query_offsets,
        query_index,
        entries,
        counts,
        tail_keep,
        tail_keys,
        tail_values,
        tail_log_sizes,
        key_steps,
        tail_steps,
        channel_steps,
        chunk=chunk,
        scale=scale,
        return_lse=return_lse,
    )
    return out.transpose(1, 2), lse if return_lse else None


def _torch(q, k, v, queries, keys, tall_chunks, keep, tail, formats, scale, return_lse):
    if formats is not None:
        raise ValueError(f"the backend torch has no products at 8 bits, expected formats None, found {formats}")
    query_tokens, query_offsets, query_index = queries
    key_tokens, key_offsets, key_index = keys
    tail_keys, tail_values, tail_log_sizes = (None,) * 3 if tail is None else tail
    out, lse = _blocks_op(
        q,
        k,
        v,
        query_tokens,
        query_offsets,
        query_index,
        key_tokens,
        key_offsets,
        key_index,
        keep,
        tail_keys,
        tail_values,
        tail_log_sizes,
        scale=scale,
        return_lse=return_lse,
    )
    return out.transpose(1, 2), lse if return_lse else None


def _in_chunks(tail: Tail, chunk: int, **options) -> QuantisedChunks:
    """The tail's keys and values quantised, in chunks of consecutive blocks."""
    batch, heads, blocks, _ = tail.keys.shape
    order = torch.arange(blocks, device=tail.keys.device, dtype=torch.int32)[None]
    start = order[:, ::chunk]
    live = (blocks - start).clamp(max=chunk)
    return quantise_chunks(tail.keys, tail.values, order, order.new_zeros(batch, heads), start, live, chunk, **options)


def _attend_fake(q: Tensor, *_, return_lse: bool, **__) -> tuple[Tensor, Tensor]:
    batch, heads, length, dim = q.shape
    lse = q.new_empty((batch, heads, length) if return_lse else (0,), dtype=torch.float32)
    return q.new_empty(batch, length, heads, dim), lse


def _attend_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    offsets: Tensor,
    index: Tensor,
    entries: Tensor,
    counts: Tensor,
    keep: Tensor | None = None,
    tail_keys: Tensor | None = None,
    tail_values: Tensor | None = None,
    tail_log_sizes: Tensor | None = None,
    key_steps: Tensor | None = None,
    tail_steps: Tensor | None = None,
    value_steps: Tensor | None = None,
    *,
    chunk: int,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """Out [B, N, H, D] and lse fp32 [B, H, N], of no elements if not asked for. k, v: [B, H, NC * chunk, D] in chunk
    layout; entries, counts: of gather.chunk_lists; keep: where the tail's fields do not take part; *_steps: of
    quantise.QuantisedChunks, value_steps if v is FP8."""
    from .triton.block_sparse_attention import launch

    config = choose_config(registry.architecture(q.device), q.shape[3], k.dtype, v.dtype, chunk)
    tail = None
    if keep is not None:  # a custom operator has no argument for what is there together or not at all
        assert tail_keys is not None and tail_values is not None and tail_log_sizes is not None
        tail = keep, tail_keys, tail_values, tail_log_sizes
    return launch(
        q,
        k,
        v,
        tokens,
        index,
        # A query tile never crosses a block: tiles are the chunks of the query order.
        tiles=chunk_layout(offsets, q.shape[2], config.queries),
        lists=(entries, counts),
        tail=tail,
        steps=(key_steps, tail_steps, value_steps),
        scale=scale,
        return_lse=return_lse,
        largest=LARGEST.get(k.dtype, 0.0),
        chunk=chunk,
        live_bits=LIVE_BITS,
        config=config,
    )


_attend_op = registry.custom_op("attend_chunks", _attend_triton, _attend_fake)


def _attend_torch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    query_tokens: Tensor,
    query_offsets: Tensor,
    query_index: Tensor,
    key_tokens: Tensor,
    key_offsets: Tensor,
    key_index: Tensor,
    keep: Tensor,
    tail_keys: Tensor | None = None,
    tail_values: Tensor | None = None,
    tail_log_sizes: Tensor | None = None,
    *,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor]:
    """Out [B, N, H, D] and lse fp32 [B, H, N], of no elements if not asked for."""
    out, lse = _attend_fake(q, return_lse=return_lse)
    tail = None
    if tail_keys is not None:  # a custom operator has no argument for what is there together or not at all
        assert tail_values is not None and tail_log_sizes is not None
        tail = Tail(tail_keys, tail_values, tail_log_sizes)
    attend = attend_in_tasks if q.device.type == "cpu" else attend_in_batches
    queries, keys = Order(query_tokens, query_offsets, query_index), Order(key_tokens, key_offsets, key_index)
    attend(q, k, v, queries, keys, keep, tail, scale, out.transpose(1, 2), lse if return_lse else None)
    return out, lse


_blocks_op = registry.custom_op("attend_blocks", _attend_torch, _attend_fake)


def _reference(q, k, v, queries, keys, tall_chunks, keep, tail, formats, scale, return_lse):
    batch, heads, length, dim = q.shape
    dtype = q.dtype
    if formats is not None:
        q, k, v, tail = _rounded(q, k, v, tail, formats)
    query_block, key_block = _block_of_token(*queries), _block_of_token(*keys)
    in_a_block = (key_block >= 0)[:, :, None]
    key_block = key_block.clamp(min=0)[:, :, None]
    k, v = k.float().transpose(2, 3), v.float()
    if tail is not None:
        k = torch.cat([k, tail.keys.float().transpose(2, 3)], dim=3)
        v = torch.cat([v, tail.values.float()], dim=2)
    out = q.new_empty(batch, length, heads, dim, dtype=dtype).transpose(1, 2)
    lse = q.new_empty(batch, heads, length, dtype=torch.float32)

    step = max(1, REFERENCE_ELEMENTS // (batch * heads * k.shape[3]))
    for start in range(0, length, step):
        rows = slice(start, start + step)
        block = query_block[:, :, rows, None]
        kept = keep.gather(2, block.expand(-1, -1, -1, keep.shape[3]))
        visible = kept.gather(3, key_block.expand(-1, -1, block.shape[2], -1)) & in_a_block
        logits = q[:, :, rows].float() @ k * scale
        if tail is not None:
            logits[..., -keep.shape[3] :] += tail.log_sizes[:, :, None]
            visible = torch.cat([visible, ~kept], dim=3)
        logits.masked_fill_(~visible, -torch.inf)
        part = logits.logsumexp(-1)
        part.masked_fill_(part == torch.inf, torch.nan)  # as the weights are
        # Where nothing is visible every logit is -inf: subtracting 0 instead of -inf gives weights of 0, not
        # NaN.
        weights = logits.sub_(part.where(part != -torch.inf, 0)[..., None]).exp_()
        out[:, :, rows] = weights @ v
        lse[:, :, rows] = part
    return out, lse if return_lse else None


def _rounded(q, k, v, tail, formats):
    """What the products see of their inputs, fp32. The kernel also rounds attention weights to FP8; their codes depend
    on the order of the sum."""

    def rows(x):
        if formats.keys is None:
            return x.float()
        codes, steps = row_codes(x, formats.keys)
        return codes.float() * steps[..., None]

    def channels(x):
        return x if formats.values is None else channel_codes(x, steps).float() * steps[:, :, None]

    shift, steps = key_shift(k)[:, :, None], value_steps(v)
    if tail is not None:
        tail = tail._replace(keys=rows(tail.keys.float() - shift), values=channels(tail.values))
    return rows(q), rows(k.float() - shift), channels(v), tail


def _block_of_token(tokens: Tensor, offsets: Tensor, index: Tensor) -> Tensor:
    """int64 [B, H, N]: the block that holds each token, -1 for none."""
    position = torch.arange(tokens.shape[1], device=tokens.device, dtype=offsets.dtype)
    block = torch.searchsorted(offsets[:, 1:].contiguous(), position.expand(tokens.shape).contiguous(), right=True)
    block = torch.where(block < offsets.shape[1] - 1, block, -1)
    return torch.zeros_like(block).scatter_(1, tokens.long(), block)[index]


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call at 16 bits (registry.trial_problem)."""
    tokens, offsets, index = one_block(device)
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    block_sparse_attention(
        x,
        x,
        x,
        query_tokens=tokens,
        query_offsets=offsets,
        query_index=index,
        key_tokens=tokens,
        key_offsets=offsets,
        key_index=index,
        keep=tokens.new_ones(1, 1, 1, 1, dtype=torch.bool),
        scale=1.0,
        backend="triton",
    )
