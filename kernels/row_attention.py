"""Exact dense attention of a few query rows: what the error of sparse attention is measured against.

All keys are seen, so the time is that of reading k and v once. The kernel gives each program PART keys of one head and
merges the parts' results by their log-sum-exp (Flash-Decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html).
As in block_sparse_attention.py, attention weights are rounded to v's dtype before they meet v, and everything else is
fp32.
"""

import torch
from torch import Tensor

from . import registry

REFERENCE_ELEMENTS = 1 << 22  # keys' numbers, values' numbers or logits that the reference holds at once, in fp32


def row_attention(queries: Tensor, k: Tensor, v: Tensor, *, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """softmax(scale * queries k^T) v; equal inputs give equal results.

    queries: [B, H, R, D], R from 1 to 64; k, v: [B, H, N, D], N at least 1; one dtype, any strides with D dense.

    Returns out fp32 [B, H, R, D] and the natural-log log-sum-exp of the logits, fp32 [B, H, R].
    """
    return {"triton": _rows_op, "torch": _reference, "reference": _reference}[backend](queries, k, v, scale)


def _reference(queries: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, heads, rows, dim = queries.shape
    queries = queries.float() * scale
    top = queries.new_full((batch, heads, rows, 1), -torch.inf)
    total, acc = torch.zeros_like(top), torch.zeros_like(queries)
    step = max(1, REFERENCE_ELEMENTS // (batch * heads * max(rows, dim)))
    for start in range(0, k.shape[2], step):
        part = slice(start, start + step)
        logits = queries @ k[:, :, part].float().mT
        new_top = torch.maximum(top, logits.amax(-1, keepdim=True))
        weights, shrink = logits.sub_(new_top).exp_(), (top - new_top).exp()
        total = total * shrink + weights.sum(-1, keepdim=True)
        acc = acc * shrink + weights @ v[:, :, part].float()
        top = new_top
    return acc / total, (top + total.log()).squeeze(-1)


def _rows_fake(queries: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    shape = queries.shape
    return queries.new_empty(shape, dtype=torch.float32), queries.new_empty(shape[:3], dtype=torch.float32)


def _rows_triton(queries: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    from .triton.row_attention import launch

    return launch(queries, k, v, scale)


_rows_op = registry.custom_op("row_attention", _rows_triton, _rows_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    row_attention(x[:, :, :16], x, x, scale=1.0, backend="triton")
