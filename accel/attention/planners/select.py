"""Estimates of attention mass by block, what follows from them, and the tail."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ....kernels.block_mean import block_mean
from ....kernels.block_sparse_attention import Tail
from ....kernels.top_p import select_blocks
from ..call import AttentionCall
from ..plan import BlockOrder, SparsePlan
from ..spending import Spending
from .steps import step


@step("map")
def estimated_mass(queries: Tensor, keys: Tensor, sizes: Tensor, scale: float) -> Tensor:
    """Estimated attention mass of every key block for every query block: fp32 [B, H, Q, K].

    queries [B, H, Q, D] and keys [B, H, K, D]: the blocks' means; sizes [B, H, K]: tokens of each key block. A softmax
    over the means' scores in which a block of n keys weighs n times; rows sum to one.
    """
    return _scores(queries, keys, sizes, scale).softmax(dim=-1)


def _scores(queries: Tensor, keys: Tensor, sizes: Tensor, scale: float) -> Tensor:
    weights = sizes.float().log().flatten(0, 1).unsqueeze(1)
    q, k = (x.float().flatten(0, 1) for x in (queries, keys))
    return torch.baddbmm(weights, q, k.mT, alpha=scale).unflatten(0, queries.shape[:2])


@step("means")
def means(x: Tensor, order: BlockOrder, backend: str) -> Tensor:
    """Mean of every block of x [B, H, N, D]: [B, H, blocks, D]; 0 for an empty one."""
    return block_mean(x, order.tokens, order.offsets, order.index, backend=backend)


@step("tail")
def make_tail(call: AttentionCall, keys: BlockOrder, key_means: Tensor | None = None) -> Tail:
    """One pooled key and value for every block of `keys` (SVG-EAR, arXiv 2603.08982; Sol-Attn, arXiv 2607.24027)."""
    if key_means is None:
        key_means = means(call.k, keys, call.backend)
    return Tail(key_means, means(call.v, keys, call.backend), keys.sizes().float().log())


def always_on(keep: Tensor) -> Tensor:
    """A map [..., Q, K] of the video's blocks with the block of other tokens first: kept by all and keeping all."""
    return torch.nn.functional.pad(keep, (1, 0, 1, 0), value=True)


@step("map")
def keep_by_mass(call: AttentionCall, spending: Spending, mass: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The key blocks, of `sizes` int [B, H, K] tokens, that hold the mass that the budget wants, by the estimate mass
    fp32 [B, H, Q, K]: keep bool [B, H, Q, K] and capped bool [B, H, Q]."""
    return select_blocks(
        mass,
        sizes.int(),
        top_p=spending.top_p,
        floor=spending.floor,
        max_density=spending.max_density,
        backend=call.backend,
    )


@step("map")
def prune(call: AttentionCall, spending: Spending, plan: SparsePlan, always: Tensor) -> SparsePlan:
    """Keeps of each row's key blocks those that hold the mass spending.top_p of them, and at least the floor.

    always: bool, a shape that expands to plan.keep's: what stays in any case, the tokens that are not video among it.
    Twilight, arXiv 2502.02770: select generously, then prune by an estimate, here that of the blocks' means.
    """
    if spending.everything:
        return plan
    candidates = plan.keep[:, :, 1:, 1:]
    if isinstance(spending.top_p, Tensor) and spending.max_density == 1:
        # A head that is to keep everything gets what the map lacks, too.
        candidates = candidates | (spending.top_p >= 1)[:, None, None]
    queries = means(call.q, plan.queries, call.backend)[:, :, 1:]
    keys = means(call.k, plan.keys, call.backend)[:, :, 1:]
    sizes = plan.keys.sizes()[:, :, 1:]
    mass = _scores(queries, keys, sizes, call.scale).masked_fill_(~candidates, -torch.inf).softmax(dim=-1)
    keep, _ = select_blocks(mass, sizes.int(), top_p=spending.top_p, floor=spending.floor, backend=call.backend)
    return replace(plan, keep=always_on(keep & candidates) | always)
