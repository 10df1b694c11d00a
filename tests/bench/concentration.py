"""How concentrated an attention map is: the property that sparse attention lives on."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
# Enough query blocks for a mean; all of them would be an N x N map.
_SAMPLED = 32


def key_block_share(q: Tensor, k: Tensor, mass: float = 0.9, block: int = BLOCK) -> float:
    """Share of the key blocks that a query block needs, best first, to hold `mass` of its attention, 0..1.

    q, k: [B, H, N, D] in the order of the blocks, `block` tokens each; what does not fill a block is left out. Mean
    over batch, heads and query blocks, of which some are sampled evenly where there are many.
    """
    blocks = q.shape[2] // block
    if blocks < 1:
        raise ValueError(f"q: expected at least {block} tokens, found {q.shape[2]}")
    q, k = (x[:, :, : blocks * block].float() for x in (q, k))
    shares = []
    for index in torch.linspace(0, blocks - 1, min(blocks, _SAMPLED)).round().long().tolist():
        rows = q[:, :, index * block : (index + 1) * block] * q.shape[-1] ** -0.5
        weights = (rows @ k.transpose(2, 3)).softmax(-1)
        # [B, H, key blocks], each query block's mass adding up to 1.
        per_block = weights.unflatten(-1, (blocks, block)).sum(-1).mean(2)
        cumulative = per_block.sort(-1, descending=True).values.cumsum(-1)
        shares.append(((cumulative < mass).sum(-1) + 1).clamp(max=blocks).float().mean() / blocks)
    return torch.stack(shares).mean().item()
