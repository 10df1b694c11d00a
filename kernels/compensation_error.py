"""How far a block's pooled key and value would be from the block itself, seen by the mean of a query block.

The routing score of SVG-EAR, arXiv 2603.08982: for query mean q, key block j with mean key m and mean value w,
E = sum over its keys k of | exp(q.k) v - exp(q.m) w |^2. Returned as a logarithm, because its size has no bound.
"""

import torch
from torch import Tensor

from . import registry, workers
from .gather import one_block

REFERENCE_ELEMENTS = 1 << 24  # scores the reference holds at once


def log_compensation_error(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    offsets: Tensor,
    index: Tensor,
    key_means: Tensor,
    value_means: Tensor,
    *,
    scale: float,
    backend: str,
) -> Tensor:
    """Natural logarithm of E for every query mean and key block.

    queries: [B, H, Q, D]; k, v: [B, H, N, D], any strides with D dense; tokens int32 [R, L], offsets int32
    [R, blocks + 1] and index int32 [B, H]: the order of the keys and its blocks (terms: gather.py); key_means,
    value_means: [B, H, blocks, D]. All of one dtype. scale multiplies the scores.

    Returns fp32 [B, H, Q, blocks], -inf for an error of zero and for a block without tokens.
    """
    return {"triton": _error_op, "torch": _error_torch, "reference": _reference}[backend](
        queries, k, v, tokens, offsets, index, key_means, value_means, scale
    )


def _reference(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    offsets: Tensor,
    index: Tensor,
    key_means: Tensor,
    value_means: Tensor,
    scale: float,
) -> Tensor:
    batch, heads, rows, dim = queries.shape
    blocks = offsets.shape[1] - 1
    position = torch.arange(tokens.shape[1], device=k.device, dtype=offsets.dtype).expand(tokens.shape).contiguous()
    # Tokens before the first block and behind the last count for an extra block that is cut off.
    block = torch.searchsorted(offsets.contiguous(), position, right=True) - 1
    block = torch.where((block >= 0) & (block < blocks), block, blocks)[index]
    order = tokens.long()[index][..., None].expand(-1, -1, -1, dim)
    k, v = k.gather(2, order).float(), v.gather(2, order).float()
    means = torch.nn.functional.pad(value_means.float(), (0, 0, 0, 1))
    own = block[..., None].expand_as(v)
    squares = v.square().sum(-1)
    along = (v * means.gather(2, own)).sum(-1)
    mean_squares = value_means.float().square().sum(-1)
    sizes = offsets.diff(dim=1)[index].float()

    out = queries.new_empty(batch, heads, rows, blocks, dtype=torch.float32)
    step = max(1, REFERENCE_ELEMENTS // (batch * heads * tokens.shape[1]))
    for start in range(0, rows, step):
        part = queries[:, :, start : start + step].float() * scale
        scores = part @ k.transpose(2, 3)
        mean_scores = part @ key_means.float().transpose(2, 3)
        where = block[:, :, None].expand_as(scores)
        top = torch.nn.functional.pad(mean_scores, (0, 1)).scatter_reduce(3, where, scores, "amax")
        weights = (scores - top.gather(3, where)).exp()
        top = top[..., :-1]
        mean_weights = (mean_scores - top).exp()
        terms = weights.square() * squares[:, :, None]
        mixed = weights * along[:, :, None]
        sums = torch.zeros(2, *scores.shape[:3], blocks + 1, device=k.device)
        exact, cross = sums.scatter_add_(4, where.expand(2, *where.shape), torch.stack([terms, mixed]))[..., :-1]
        pooled = mean_weights.square() * (sizes * mean_squares)[:, :, None]
        error = (exact - 2 * mean_weights * cross + pooled).clamp(min=0)
        out[:, :, start : start + step] = torch.where(sizes[:, :, None] > 0, error.log() + 2 * top, -torch.inf)
    return out


def _error_torch(queries, k, v, tokens, offsets, index, key_means, value_means, scale):
    """The reference, on the CPU head by head. Of a row, errors of less than about e^-80 of what its largest score could
    give count as zero."""
    if queries.device.type != "cpu":
        return _reference(queries, k, v, tokens, offsets, index, key_means, value_means, scale)
    out = queries.new_empty(*queries.shape[:3], offsets.shape[1] - 1, dtype=torch.float32)

    def task(b: int, h: int) -> None:
        order, bounds = tokens[index[b, h]], offsets[index[b, h]]
        out[b, h] = _error_of_head(
            queries[b, h],
            k[b, h],
            v[b, h],
            order[bounds[0] : bounds[-1]].long(),
            bounds.diff(),
            key_means[b, h].float(),
            value_means[b, h].float(),
            scale,
        )

    workers.share_places(task, range(queries.shape[0]), range(queries.shape[1]))
    return out


def _error_of_head(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    members: Tensor,
    sizes: Tensor,
    key_means: Tensor,
    value_means: Tensor,
    scale: float,
) -> Tensor:
    """log_compensation_error [Q, blocks] of one head, whose blocks of `sizes` hold the tokens `members`."""
    dtype = workers.guessing_dtype(k)
    starts = sizes.cumsum(0) - sizes
    block = torch.arange(len(sizes)).repeat_interleave(sizes)
    values = v.float()
    means = torch.zeros_like(values).index_copy_(0, members, value_means.index_select(0, block))
    squares, along = values.square().sum(1), (values * means).sum(1)

    queries = queries.float() * scale
    scores = (k.to(dtype) @ queries.to(dtype).t()).float()
    mean_scores = key_means @ queries.t()
    top = torch.maximum(scores.amax(0), mean_scores.amax(0))
    if top.isnan().any():  # stays in its block
        top = torch.maximum(scores.nan_to_num(-torch.inf).amax(0), mean_scores.nan_to_num(-torch.inf).amax(0))
    weights = scores.sub_(top).exp()
    mean_weights = (mean_scores - top).exp()

    def summed(weights: Tensor, factors: Tensor) -> Tensor:
        return torch.nn.functional.embedding_bag(
            members, weights, starts, mode="sum", per_sample_weights=factors.index_select(0, members)
        )

    cross = summed(weights, along)
    exact = summed(weights.square_(), squares)
    pooled = mean_weights.square() * (sizes * value_means.square().sum(1))[:, None]
    error = (exact - 2 * mean_weights * cross + pooled).clamp_(min=0).log_() + 2 * top
    return error.masked_fill_((sizes == 0)[:, None], -torch.inf).t()


def _error_fake(queries: Tensor, k: Tensor, v: Tensor, tokens: Tensor, offsets: Tensor, *_) -> Tensor:
    return queries.new_empty(*queries.shape[:3], offsets.shape[1] - 1, dtype=torch.float32)


def _error_triton(
    queries: Tensor,
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    offsets: Tensor,
    index: Tensor,
    key_means: Tensor,
    value_means: Tensor,
    scale: float,
) -> Tensor:
    from .triton.compensation_error import launch

    return launch(queries, k, v, tokens, offsets, index, key_means, value_means, scale)


_error_op = registry.custom_op("log_compensation_error", _error_triton, _error_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    x = torch.zeros(1, 1, 64, head_dim, dtype=dtype, device=device)
    means = x[:, :, :1].contiguous()
    log_compensation_error(means, x, x, *one_block(device), means, means, scale=1.0, backend="triton")
