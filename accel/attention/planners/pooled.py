"""pooled: fixed blocks in a token order; their means say what to keep, and stand in for what is not kept.

The family of Sol-Attn (arXiv 2607.24027) and of block top-k methods, with the budget's top-p in place of a threshold.
Nothing is remembered between steps.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from ..call import AttentionCall
from ..plan import BlockOrder, SparsePlan
from ..spending import Spending
from .blocks import block_order, block_sizes, ordered_blocks
from .select import always_on, estimated_mass, keep_by_mass, make_tail, means


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Blocks by call.token_order (auto: cube), kept by the mass that their means promise; with a tail."""
    shared = call.static.get(("pooled", call.layout, call.token_order, call.q.device), lambda: _orders(call))
    queries, keys = (replace(order, index=order.index.expand(call.q.shape[:2])) for order in shared)
    return plan_by_means(call, spending, queries, keys)


def plan_by_means(call: AttentionCall, spending: Spending, queries: BlockOrder, keys: BlockOrder) -> SparsePlan:
    """Keeps of these blocks, the first of which holds the tokens that are not video, those that hold the mass
    spending.top_p by an estimate of the blocks' means, which are the tail."""
    key_means = means(call.k, keys, call.backend)
    query_means = means(call.q, queries, call.backend)
    sizes = keys.sizes()[:, :, 1:]
    mass = estimated_mass(query_means[:, :, 1:], key_means[:, :, 1:], sizes, call.scale)
    keep, capped = keep_by_mass(call, spending, mass, sizes)
    return SparsePlan(queries, keys, always_on(keep), capped, make_tail(call, keys, key_means))


def _orders(call: AttentionCall) -> tuple[BlockOrder, BlockOrder]:
    grid = call.layout.grid
    index = torch.zeros(1, 1, dtype=torch.int32, device=call.q.device)
    queries, keys = (
        block_order(call.layout, [ordered_blocks(grid, call.token_order, size)], index)
        for size in block_sizes(math.prod(grid))
    )
    return queries, keys
