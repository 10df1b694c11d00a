"""Runs a SparsePlan: picks nothing, computes the attention that the plan says."""

from __future__ import annotations

import torch

from ...kernels.block_sparse_attention import block_sparse_attention
from ...kernels.quantise import Formats
from .plan import SparsePlan


def execute(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: SparsePlan,
    *,
    formats: Formats | None = None,
    scale: float,
    backend: str,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention of q, k, v [B, H, N, D] over the blocks that `plan` keeps and its tail; returns [B, H, N, D] in
    q.dtype, and with return_lse the log-sum-exp of each row's scores too, fp32 [B, H, N].

    formats: what is multiplied at 8 bits, None for nothing. scale multiplies the scores before the softmax. backend
    is `triton`, `torch` or `reference`.
    """
    out, lse = block_sparse_attention(
        q,
        k,
        v,
        query_tokens=plan.queries.tokens,
        query_offsets=plan.queries.offsets,
        query_index=plan.queries.index,
        key_tokens=plan.keys.tokens,
        key_offsets=plan.keys.offsets,
        key_index=plan.keys.index,
        key_tall_chunks=plan.keys.tall_chunks,
        keep=plan.keep,
        tail=plan.tail,
        formats=formats,
        scale=scale,
        backend=backend,
        return_lse=return_lse,
    )
    return out if lse is None else (out, lse)
