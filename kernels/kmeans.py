"""Lloyd's two half-steps for many small k-means problems at once, one per (batch, head).

Method: SVG2, arXiv 2505.18875 (squared Euclidean distance, 16-bit tokens, fp32 accumulation). No N x C
distance tensor exists, and nothing is added atomically, so equal input gives equal output.
"""

import torch
from torch import Tensor

from . import registry

REFERENCE_ELEMENTS = 1 << 24  # scores the reference holds at once


def assign(x: Tensor, centroids: Tensor, *, backend: str) -> Tensor:
    """Nearest centroid of every token; on equal distance the one with the lowest index.

    x: [B, H, N, D], any strides with D dense; centroids: [B, H, C, D], same dtype.

    Returns labels int32 [B, H, N] in [0, C).
    """
    # argmin |x - c|^2 = argmax x.c - |c|^2 / 2: the token's own norm never enters, so it cannot overflow.
    half_norms = centroids.float().square().sum(-1) * 0.5
    return {"triton": _assign_op, "reference": _assign_reference}[backend](x, centroids, half_norms)


def update(x: Tensor, order: Tensor, offsets: Tensor, previous: Tensor, *, backend: str) -> Tensor:
    """Mean of every cluster's tokens, summed in fp32; an empty cluster keeps its previous centroid.

    x: [B, H, N, D], any strides with D dense; order: int32 or int64 [B, H, N], the tokens sorted by label;
    offsets: int32 [B, H, C + 1], where each cluster starts in the order; previous: [B, H, C, D].

    Returns centroids [B, H, C, D] in x's dtype.
    """
    return {"triton": _update_op, "reference": _update_reference}[backend](x, order, offsets, previous)


def _assign_reference(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    batch, heads, tokens, _ = x.shape
    step = max(1, REFERENCE_ELEMENTS // (batch * heads * centroids.shape[2]))
    columns = centroids.float().transpose(-1, -2)
    labels = [
        (x[:, :, start : start + step].float() @ columns - half_norms[:, :, None]).argmax(-1).int()
        for start in range(0, tokens, step)
    ]
    return torch.cat(labels, dim=2)


def _assign_fake(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    return x.new_empty(x.shape[:3], dtype=torch.int32)


@registry.custom_op("kmeans_assign", _assign_fake)
def _assign_op(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    from .triton_kmeans import launch_assign

    return launch_assign(x, centroids, half_norms)


def _update_reference(x: Tensor, order: Tensor, offsets: Tensor, previous: Tensor) -> Tensor:
    batch, heads, tokens, dim = x.shape
    step = max(1, REFERENCE_ELEMENTS // (batch * heads * dim))
    sizes = offsets.diff(dim=-1)
    labels = torch.searchsorted(
        offsets[..., 1:].contiguous(),
        torch.arange(tokens, device=x.device, dtype=offsets.dtype).expand(batch, heads, tokens).contiguous(),
        right=True,
    )
    sums = torch.zeros(previous.shape, dtype=torch.float32, device=x.device)
    for start in range(0, tokens, step):
        part = slice(start, start + step)
        members = order[..., part].long()[..., None].expand(-1, -1, -1, dim)
        sums.scatter_add_(2, labels[..., part, None].expand_as(members), x.gather(2, members).float())
    means = sums / sizes.clamp(min=1)[..., None]
    return torch.where((sizes > 0)[..., None], means.to(x.dtype), previous)


def _update_fake(x: Tensor, order: Tensor, offsets: Tensor, previous: Tensor) -> Tensor:
    return x.new_empty(previous.shape)


@registry.custom_op("kmeans_update", _update_fake)
def _update_op(x: Tensor, order: Tensor, offsets: Tensor, previous: Tensor) -> Tensor:
    from .triton_kmeans import launch_update

    return launch_update(x, order, offsets, previous)
