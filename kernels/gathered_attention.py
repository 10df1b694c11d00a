"""Block-sparse attention in plain PyTorch: the keys that a query block keeps side by side, then dense products.

On a CPU each query block is a task for one of several threads (workers.py): blocks have any size and none is padded.
Elsewhere tiles of query blocks that keep about as many keys are a batch. The softmax is the running one of
FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from . import workers
from .gather import chunk_layout

ROWS = 256  # queries of a task at most
STEP = 4096  # keys of a step: their logits fit a cache
FILLED_ROWS, FILLED_KEYS = 32, 256  # a task's products in 16 bits have a multiple of so many
TILE = 128  # queries in a batch are so many of a block, some of them twice
ALIKE = 0.875  # of the most keys in a batch, at least so many are needed by each of its tiles
BATCH = 256 << 20  # bytes that a batch takes
LOG2E = math.log2(math.e)


@dataclass(frozen=True)
class Order:
    """See gather.py: tokens int32 [R, N], offsets int32 [R, blocks + 1], index int32 [B, H]."""

    tokens: Tensor
    offsets: Tensor
    index: Tensor


class Tail(NamedTuple):
    """What stands in for the key blocks that a query block does not keep.

    keys, values: [B, H, KB, D] in the dtype of q; log_sizes: fp32 [B, H, KB], the natural logarithm of the tokens
    that each stands for, -inf for a block without any.
    """

    keys: Tensor
    values: Tensor
    log_sizes: Tensor


def attend_in_tasks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Order,
    keys: Order,
    keep: Tensor,
    tail: Tail | None,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """block_sparse_attention of tensors on the CPU, into out [B, H, N, D] and lse fp32 [B, H, N]."""

    def tasks() -> Iterator[Callable[[], None]]:
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                order = keys.index[b, h]
                stand_ins = None if tail is None else Tail(*(x[b, h] for x in tail))
                head = _Head(k[b, h], v[b, h], keys.tokens[order], keys.offsets[order], stand_ins, scale)
                order = queries.index[b, h]
                tokens = queries.tokens[order].long()
                rows = q[b, h], out[b, h], None if lse is None else lse[b, h]
                for block, (start, end) in enumerate(pairwise(queries.offsets[order].tolist())):
                    for first in range(start, end, ROWS):
                        part = tokens[first : min(first + ROWS, end)]
                        yield functools.partial(head.attend, *rows, part, keep[b, h, block])

    workers.share(tasks())


class _Head:
    """Keys and values of one head, put in the order of its blocks by the first task that asks for them."""

    def __init__(self, k: Tensor, v: Tensor, tokens: Tensor, offsets: Tensor, tail: Tail | None, scale: float) -> None:
        self._tokens = tokens[offsets[0] : offsets[-1]]
        self._sizes = offsets.diff()
        self._tail = tail
        self._scale = scale
        in_16_bits = k.dtype == torch.bfloat16 and workers.multiplies_bf16()
        self._dtype = k.dtype if in_16_bits else torch.float32
        self._unordered = k, v
        self._ordered: tuple[Tensor, Tensor] | None = None
        self._lock = threading.Lock()

    def attend(self, q: Tensor, out: Tensor, lse: Tensor | None, tokens: Tensor, kept: Tensor) -> None:
        """Writes the rows `tokens` of out [N, D] and lse [N]. kept: bool [KB]."""
        k, v = self._rows()
        queries = q.index_select(0, self._filled(tokens, FILLED_ROWS))
        softmax = _Softmax(queries)
        seen = kept.repeat_interleave(self._sizes, output_size=len(self._tokens)).nonzero().squeeze(1)
        rows = queries.to(self._dtype)
        for first in range(0, len(seen), STEP):
            part = seen[first : first + STEP]
            filled = self._filled(part, FILLED_KEYS)
            dead = None if len(filled) == len(part) else torch.arange(len(filled)) >= len(part)
            softmax.add(rows, k.index_select(0, filled), v.index_select(0, filled), self._scale, dead=dead)
        if self._tail is not None:
            dropped = kept.logical_not().nonzero().squeeze(1)
            keys, values, log_sizes = (x.index_select(0, dropped).float() for x in self._tail)
            softmax.add(queries.float(), keys, values, self._scale, log_sizes)
        result, total = softmax.close()
        out.index_copy_(0, tokens, result[: len(tokens)].to(out.dtype))
        if lse is not None:
            lse.index_copy_(0, tokens, total[: len(tokens)])

    def _filled(self, index: Tensor, multiple: int) -> Tensor:
        """index with its last entry again, up to a multiple: oneDNN compiles a product in 16 bits for every new shape,
        and clusters have all of them."""
        missing = -len(index) % multiple
        if self._dtype == torch.float32 or not missing:
            return index
        return torch.cat([index, index[-1:].expand(missing)])

    def _rows(self) -> tuple[Tensor, Tensor]:
        with self._lock:
            if self._ordered is None:
                k, v = (x.index_select(0, self._tokens).to(self._dtype) for x in self._unordered)
                self._ordered = k, v
            return self._ordered


def attend_in_batches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Order,
    keys: Order,
    keep: Tensor,
    tail: Tail | None,
    scale: float,
    out: Tensor,
    lse: Tensor | None,
) -> None:
    """block_sparse_attention on any device, into out [B, H, N, D] and lse fp32 [B, H, N]. The host waits for the device
    once, for the number of keys that each tile needs."""
    _, heads, length, dim = q.shape
    device = q.device
    block, start, live = (x[queries.index.flatten()] for x in chunk_layout(queries.offsets, length, TILE))
    block = block.long()
    key_order = keys.index.flatten().long()
    sizes = keys.offsets.diff()[key_order]
    kept_tokens = torch.where(keep.flatten(0, 1), sizes[:, None], 0).sum(-1)
    needed = torch.where(live > 0, kept_tokens.gather(1, block.clamp(min=0)), -1)
    lane = torch.arange(TILE, device=device)
    for places, most in _batches(needed.flatten().tolist(), TILE * 8 + dim * 4 * k.element_size()):
        place = torch.tensor(places, device=device)
        pair = place // block.shape[1]
        b, h = pair // heads, pair % heads
        # Beyond a tile's end its last query comes again: the same result is written twice.
        lanes = torch.minimum(lane, live.flatten()[place, None] - 1)
        tokens = queries.tokens[queries.index.flatten()[pair, None], start.flatten()[place, None] + lanes].long()
        rows = q[b[:, None], h[:, None], tokens]
        kept = keep[b, h, block.flatten()[place]]
        softmax = _Softmax(rows)
        if most > 0:
            members, dead = _members(kept, sizes[pair], keys, key_order[pair], most)
            at = b[:, None], h[:, None], members
            softmax.add(rows, k[at], v[at], scale, dead=dead[:, None])
        if tail is not None:
            stand_ins = Tail(*(x[b, h].float() for x in tail))
            log_sizes = stand_ins.log_sizes[:, None]
            softmax.add(rows.float(), stand_ins.keys, stand_ins.values, scale, log_sizes, dead=kept[:, None])
        result, total = softmax.close()
        out[b[:, None], h[:, None], tokens] = result.to(out.dtype)
        if lse is not None:
            lse[b[:, None], h[:, None], tokens] = total


def _batches(needed: list[int], bytes_a_key: int) -> Iterator[tuple[list[int], int]]:
    """Tiles that need about as many keys, and the most that one of them needs. needed: by tile, -1 for no tile."""
    order = sorted((i for i, keys in enumerate(needed) if keys >= 0), key=needed.__getitem__, reverse=True)
    first = 0
    while first < len(order):
        most = needed[order[first]]
        room = max(1, BATCH // (bytes_a_key * max(most, 1)))
        last = first
        while last < len(order) and last - first < room and needed[order[last]] >= ALIKE * most:
            last += 1
        yield order[first:last], most
        first = last


def _members(kept: Tensor, sizes: Tensor, keys: Order, order: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The tokens int64 [G, most] of the blocks that are kept [G, KB], of `sizes` [G, KB], and which of them are none.
    order: int64 [G], rows of keys."""
    kept_sizes = torch.where(kept, sizes, 0)
    ends = kept_sizes.cumsum(1)
    nth = torch.arange(most, device=kept.device).expand(len(kept), most)
    block = torch.searchsorted(ends, nth.contiguous(), right=True).clamp(max=kept.shape[1] - 1)
    position = keys.offsets[order].gather(1, block) + nth - (ends - kept_sizes).gather(1, block)
    dead = nth >= ends[:, -1:]
    return keys.tokens[order[:, None], position.masked_fill(dead, 0)].long(), dead


class _Softmax:
    """The running softmax of queries [..., R, D] and its product with the values, in fp32. Logits are to base 2: on the
    CPU torch has a faster exponential for it."""

    def __init__(self, queries: Tensor) -> None:
        self._out = torch.zeros_like(queries, dtype=torch.float32)
        self._total = torch.zeros_like(self._out[..., :1])
        self._top = torch.full_like(self._total, -torch.inf)

    def add(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        scale: float,
        log_sizes: Tensor | None = None,
        dead: Tensor | None = None,
    ) -> None:
        """keys, values: [..., K, D] of one dtype. log_sizes: fp32, added to the logits of fp32 keys. dead: bool, keys
        that do not count. Both of a shape that expands to [..., R, K]."""
        if not keys.shape[-2]:
            return
        transposed = keys.mT
        scale *= LOG2E
        if keys.dtype == torch.float32:
            logits = (queries * scale) @ transposed
            if log_sizes is not None:
                logits += log_sizes * LOG2E
            if dead is not None:
                logits.masked_fill_(dead, -torch.inf)
            shift = self._raise(logits.amax(-1, keepdim=True))
            weights = logits.sub_(shift).exp2_()
        else:
            # 16 bits round large logits too coarsely: what is kept is how far below the largest they lie.
            logits = queries @ transposed
            if dead is not None:
                logits.masked_fill_(dead, -torch.inf)
            shift = self._raise(logits.amax(-1, keepdim=True).float().mul_(scale).to(keys.dtype))
            multiply = torch.addmm if queries.ndim == 2 else torch.baddbmm
            logits = multiply(shift.to(keys.dtype).neg_(), queries, transposed, alpha=scale)
            if dead is not None:
                logits.masked_fill_(dead, -torch.inf)
            weights = logits.exp2_()
        self._total += weights.sum(-1, keepdim=True, dtype=torch.float32)
        self._out += weights @ values

    def _raise(self, top: Tensor) -> Tensor:
        """Takes the largest logits of a step in; what logits lose before their exponential. Where all are -inf it is 0:
        the weights are 0 then and not NaN."""
        top = torch.maximum(self._top, top)
        shift = top.where(top != -torch.inf, 0)
        shrink = (self._top - shift).exp2_()
        self._top, self._total, self._out = top, self._total * shrink, self._out * shrink
        return shift

    def close(self) -> tuple[Tensor, Tensor]:
        """The result [..., R, D] and the log-sum-exp [..., R]: 0 and -inf for a query that saw nothing."""
        total = self._total.where(self._total != 0, 1)
        return self._out / total, (self._top + total.log2()).squeeze(-1) / LOG2E
