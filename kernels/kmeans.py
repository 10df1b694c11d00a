"""Nearest centroids for many small k-means problems at once, one per (batch, head); the other half-step of
Lloyd's algorithm is block_mean.py.

Method: SVG2, arXiv 2505.18875 (squared Euclidean distance, 16-bit tokens, fp32 accumulation). No N x C
distance tensor exists.
"""

import torch
from torch import Tensor

from . import registry, workers

REFERENCE_ELEMENTS = 1 << 24  # scores the reference holds at once
ROWS = 2048  # tokens of a task on the CPU


def assign(x: Tensor, centroids: Tensor, *, backend: str) -> Tensor:
    """Nearest centroid of every token; on equal distance the one with the lowest index.

    x: [B, H, N, D], any strides with D dense; centroids: [B, H, C, D], same dtype.

    Returns labels int32 [B, H, N] in [0, C).
    """
    # argmin |x - c|^2 = argmax x.c - |c|^2 / 2: the token's own norm never enters, so it cannot overflow.
    half_norms = centroids.float().square().sum(-1) * 0.5
    return {"triton": _assign_op, "torch": _assign_torch, "reference": _assign_reference}[backend](
        x, centroids, half_norms
    )


def _assign_reference(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    batch, heads, tokens, _ = x.shape
    step = max(1, REFERENCE_ELEMENTS // (batch * heads * centroids.shape[2]))
    columns = centroids.float().transpose(-1, -2)
    labels = [
        (x[:, :, start : start + step].float() @ columns - half_norms[:, :, None]).argmax(-1).int()
        for start in range(0, tokens, step)
    ]
    return torch.cat(labels, dim=2)


def _assign_torch(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    """The reference on several threads, with products in 16 bits where the CPU has them: of two centroids as near as
    makes no difference it may take the other."""
    if x.device.type != "cpu":
        return _assign_reference(x, centroids, half_norms)
    labels = x.new_empty(x.shape[:3], dtype=torch.int32)
    dtype = workers.guessing_dtype(x)
    columns, shifts = centroids.to(dtype).mT, -half_norms.to(dtype)

    def task(b: int, h: int, start: int) -> None:
        rows = x[b, h, start : start + ROWS].to(dtype)
        scores = torch.addmm(shifts[b, h], rows, columns[b, h]).float()
        # Several times as fast as torch's.
        labels[b, h, start : start + ROWS] = torch.from_numpy(scores.numpy().argmax(1))

    workers.share_places(task, range(x.shape[0]), range(x.shape[1]), range(0, x.shape[2], ROWS))
    return labels


def _assign_fake(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    return x.new_empty(x.shape[:3], dtype=torch.int32)


def _assign_triton(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    from .triton.kmeans import launch_assign

    return launch_assign(x, centroids, half_norms)


_assign_op = registry.custom_op("kmeans_assign", _assign_triton, _assign_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    assign(x, x[:, :, :16].contiguous(), backend="triton")
