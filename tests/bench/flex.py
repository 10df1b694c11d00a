"""The same mask for PyTorch's FlexAttention: a plan whose blocks all have one size, over permuted tokens."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dit_accel.accel.attention.plan import BlockOrder, SparsePlan
from dit_accel.kernels.attention_configs import QUERY_TILE
from dit_accel.kernels.gather import TALL

# Tiles of FlexAttention's kernel, which must divide the blocks: as large as ours.
ROWS, COLUMNS = QUERY_TILE, TALL


def prepare(
    q: Tensor, k: Tensor, v: Tensor, plan: SparsePlan
) -> tuple[tuple[Tensor, Tensor, Tensor], BlockMask, dict[str, int], Callable[[Tensor], Tensor]]:
    """q, k, v [B, H, N, D] in the plan's orders, its map as a block mask, kernel options, and what brings a result
    back to the order of the tokens.

    Raises ValueError where the blocks of an order are not all of one size (empty ones aside).
    """
    query_blocks, query_size = _equal(plan.queries)
    key_blocks, key_size = _equal(plan.keys)
    keep = plan.keep[:, :, query_blocks][:, :, :, key_blocks]
    counts = keep.sum(-1, dtype=torch.int32)
    indices = keep.int().argsort(dim=-1, descending=True, stable=True).int()
    mask = BlockMask.from_kv_blocks(
        torch.zeros_like(counts),
        indices,
        counts,
        indices,
        BLOCK_SIZE=(query_size, key_size),
        mask_mod=lambda b, h, query, key: keep[b, h, query // query_size, key // key_size],
    )
    query_tokens, key_tokens = (_tokens(order, q.shape[-1]) for order in (plan.queries, plan.keys))
    permuted = q.gather(2, query_tokens), k.gather(2, key_tokens), v.gather(2, key_tokens)
    options = {"BLOCK_M": min(ROWS, query_size), "BLOCK_N": min(COLUMNS, key_size)}
    return permuted, mask, options, lambda out: torch.empty_like(out).scatter_(2, query_tokens, out)


def _equal(order: BlockOrder) -> tuple[Tensor, int]:
    """The blocks that hold tokens, and their size."""
    sizes = order.sizes()
    used = (sizes > 0).flatten(0, 1).any(0).nonzero().flatten()
    size = int(sizes.max())
    if not (sizes[:, :, used] == size).all():
        raise ValueError("blocks of unequal size")
    return used, size


def _tokens(order: BlockOrder, dim: int) -> Tensor:
    return order.tokens[order.index.long()].long()[..., None].expand(-1, -1, -1, dim)
