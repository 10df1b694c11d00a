"""Mean of the tokens of every block of an order: k-means centroids, pooled queries, keys and values."""

import torch
from torch import Tensor

from . import registry, workers
from .gather import one_block

REFERENCE_ELEMENTS = 1 << 24  # numbers the reference gathers at once


def block_mean(
    x: Tensor, tokens: Tensor, offsets: Tensor, index: Tensor, *, empty: Tensor | None = None, backend: str
) -> Tensor:
    """Mean over each block's tokens, summed in fp32; the kernel does so in a fixed order, so its results repeat.

    x: [B, H, N, D], any strides with D dense; tokens: int32 [R, L], offsets: int32 [R, blocks + 1] and
    index: int32 [B, H], an order and its blocks (terms: gather.py); the tokens of an order need not be all of x's.
    empty: [B, H, blocks, D], what a block without tokens gets instead of 0.

    Returns [B, H, blocks, D] in x's dtype.
    """
    if empty is None:
        empty = x.new_zeros(*x.shape[:2], offsets.shape[1] - 1, x.shape[3])
    return {"triton": _mean_op, "torch": _mean_torch, "reference": _reference}[backend](
        x, tokens, offsets, index, empty
    )


def _reference(x: Tensor, tokens: Tensor, offsets: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    batch, heads, _, dim = x.shape
    length = tokens.shape[1]
    step = max(1, REFERENCE_ELEMENTS // (batch * heads * dim))
    position = torch.arange(length, device=x.device, dtype=offsets.dtype).expand(tokens.shape).contiguous()
    # Tokens before the first block and behind the last are summed apart and cut off.
    blocks = offsets.shape[1] - 1
    block = torch.searchsorted(offsets.contiguous(), position, right=True) - 1
    block = torch.where((block >= 0) & (block < blocks), block, blocks)[index]
    order = tokens.long()[index]
    sums = x.new_zeros(batch, heads, offsets.shape[1], dim, dtype=torch.float32)
    for start in range(0, length, step):
        part = slice(start, start + step)
        members = order[..., part, None].expand(-1, -1, -1, dim)
        sums.scatter_add_(2, block[..., part, None].expand_as(members), x.gather(2, members).float())
    sizes = offsets.diff(dim=1)[index][..., None]
    means = sums[:, :, :-1] / sizes.clamp(min=1)
    return torch.where(sizes > 0, means.to(x.dtype), empty)


def _mean_torch(x: Tensor, tokens: Tensor, offsets: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    """The reference, on the CPU head by head without gathering anything."""
    if x.device.type != "cpu":
        return _reference(x, tokens, offsets, index, empty)
    out = torch.empty_like(empty)

    def task(b: int, h: int) -> None:
        order, bounds = tokens[index[b, h]], offsets[index[b, h]]
        members, starts = order[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]
        means = torch.nn.functional.embedding_bag(members, x[b, h].float(), starts, mode="mean").to(x.dtype)
        out[b, h] = torch.where((bounds.diff() > 0)[:, None], means, empty[b, h])

    workers.share_places(task, range(x.shape[0]), range(x.shape[1]))
    return out


def _mean_fake(x: Tensor, tokens: Tensor, offsets: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    return x.new_empty(empty.shape)


def _mean_triton(x: Tensor, tokens: Tensor, offsets: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    from .triton.block_mean import launch

    return launch(x, tokens, offsets, index, empty)


_mean_op = registry.custom_op("block_mean", _mean_triton, _mean_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    block_mean(x, *one_block(device), backend="triton")
