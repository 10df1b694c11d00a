"""Tokens in the order of their labels: a stable counting sort of many short problems at once, one per (batch, head).

Labels are few against tokens, so counting them beats comparing them. Integers alone are added, so equal inputs give
equal results. What is counted is one row of labels for each of SEGMENTS parts of the sequence, whatever its length.
"""

import torch
from torch import Tensor

from . import registry

SEGMENTS = 32


def group(labels: Tensor, count: int, *, backend: str) -> tuple[Tensor, Tensor]:
    """The positions of the tokens label by label, rising within one label.

    labels: int32 [B, H, N] in [0, count).

    Returns order int32 [B, H, N], position -> token, and offsets int32 [B, H, count + 1], the ends of the labels.
    """
    return {"triton": _group_op, "torch": _group_torch, "reference": _group_reference}[backend](labels, count)


def _group_reference(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    labels, order = labels.sort(dim=-1, stable=True)
    bounds = torch.arange(count + 1, device=labels.device, dtype=torch.int32).expand(*labels.shape[:2], -1)
    return order.int(), torch.searchsorted(labels, bounds.contiguous(), out_int32=True)


def _group_torch(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The reference, on the CPU with NumPy's radix sort of 16-bit numbers."""
    if labels.device.type != "cpu" or count > 1 << 15:
        return _group_reference(labels, count)
    order = torch.from_numpy(labels.short().numpy().argsort(axis=-1, kind="stable")).int()
    flat = (labels.flatten(0, 1) + torch.arange(labels[..., 0].numel())[:, None] * count).flatten()
    sizes = torch.bincount(flat, minlength=labels[..., 0].numel() * count).view(*labels.shape[:2], count)
    return order, torch.nn.functional.pad(sizes.cumsum(-1), (1, 0)).int()


def _group_fake(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(labels), labels.new_empty(*labels.shape[:2], count + 1)


def _group_triton(labels: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # Triton 3.3 moves what tl.gather looks up by a shuffle for every entry, and compiles that for minutes.
    if registry.triton_version() < (3, 4):
        return _group_reference(labels, count)
    from .triton.group import launch

    return launch(labels, count, segments=SEGMENTS)


_group_op = registry.custom_op("group", _group_triton, _group_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: None) -> None:
    """The smallest call (registry.trial_problem)."""
    group(torch.zeros(1, 1, 64, dtype=torch.int32, device=device), 16, backend="triton")
