"""SparsePlan: the one word between planners, which choose blocks, and executors, which run them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...kernels.block_sparse_attention import Tail

PART = 1 << 22  # entries of the map that are counted at once: it is never held whole as fp32


@dataclass(frozen=True)
class BlockOrder:
    """Token orders, each cut into consecutive blocks of any size (empty ones allowed).

    tokens: int32 [R, N], position -> token.
    offsets: int32 [R, blocks + 1], first position of each block; the last entry is N.
    index: int32 [B, H], the order that each (batch row, head) uses.
    tall_chunks: the most chunks of kernels.gather.TALL rows that the blocks of an order make, where that pads them
    little; None where it would pad them more, and for blocks whose sizes the host does not know.
    """

    tokens: torch.Tensor
    offsets: torch.Tensor
    index: torch.Tensor
    tall_chunks: int | None = None

    @property
    def blocks(self) -> int:
        return self.offsets.shape[1] - 1

    def block_of_token(self) -> torch.Tensor:
        """The block that holds each token for each (batch row, head): int64 [B, H, N]."""
        position = torch.arange(self.tokens.shape[1], device=self.tokens.device, dtype=self.offsets.dtype)
        ends = self.offsets[:, 1:].contiguous()
        block = torch.searchsorted(ends, position.expand(self.tokens.shape).contiguous(), right=True)
        return torch.zeros_like(block).scatter_(1, self.tokens.long(), block)[self.index.long()]

    def sizes(self) -> torch.Tensor:
        """Tokens per block for each (batch row, head): int64 [B, H, blocks]."""
        return self.offsets.diff(dim=1)[self.index.long()].long()


@dataclass(frozen=True)
class SparsePlan:
    """Which key blocks each query block attends.

    keep: bool [B, H, query blocks, key blocks]; may be an expanded view where heads share a map.
    capped: bool [B, H, query blocks] or None: rows where the budget's max_density removed something.
    tail: pooled keys and values that stand in for the blocks that are not kept, or None: those are skipped.
    """

    queries: BlockOrder
    keys: BlockOrder
    keep: torch.Tensor
    capped: torch.Tensor | None = None
    tail: Tail | None = None

    def density(self) -> torch.Tensor:
        """Kept fraction of the N x N map, averaged over batch and heads: fp32 scalar on the device."""
        return self.density_by_head().mean()

    def density_by_head(self) -> torch.Tensor:
        """Kept fraction of each head's N x N map: fp32 [B, H] on the device."""
        query_sizes, key_sizes = self.queries.sizes().float(), self.keys.sizes().float()
        batch, heads, *blocks = self.keep.shape
        step = max(1, PART // (batch * math.prod(blocks)))
        kept = []
        for start in range(0, heads, step):
            some = slice(start, start + step)
            kept_keys = torch.einsum("bhqk,bhk->bhq", self.keep[:, some].float(), key_sizes[:, some])
            kept.append((kept_keys * query_sizes[:, some]).sum(-1))
        return torch.cat(kept, dim=1) / (query_sizes.sum(-1) * key_sizes.sum(-1))
