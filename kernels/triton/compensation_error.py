"""Triton kernel of compensation_error.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import registry


class Config(NamedTuple):
    """Query means and keys of one tile, warps of a program, pipeline stages of the key loop."""

    queries: int
    keys: int
    warps: int
    stages: int


CONFIGS = {
    "sm_80": Config(64, 32, 4, 2),
    "gfx942": Config(64, 32, 4, 1),
    "gfx1100": Config(64, 16, 4, 1),
    "gfx1201": Config(64, 16, 4, 1),
    "interpreter": Config(32, 32, 4, 1),
}


def launch(
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
    """See compensation_error.log_compensation_error."""
    batch, heads, rows, dim = queries.shape
    blocks = offsets.shape[1] - 1
    config = registry.nearest(CONFIGS, registry.architecture(k.device))
    out = queries.new_empty(batch, heads, rows, blocks, dtype=torch.float32)
    with torch.cuda.device_of(k):
        # Neighbouring programs share a key block, which then comes from the cache.
        _error[(triton.cdiv(rows, config.queries), blocks, batch * heads)](
            queries.contiguous(),
            k,
            v,
            tokens.contiguous(),
            offsets.contiguous(),
            index.contiguous(),
            key_means.contiguous(),
            value_means.contiguous(),
            out,
            *k.stride()[:3],
            *v.stride()[:3],
            heads,
            rows,
            tokens.shape[1],
            blocks,
            scale * math.log2(math.e),
            DIM=dim,
            QUERIES=config.queries,
            KEYS=config.keys,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


@triton.jit(do_not_specialize=["heads", "rows", "length", "blocks", "scale_log2"])
def _error(
    queries,
    k,
    v,
    tokens,
    offsets,
    index,
    key_means,
    value_means,
    out,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    rows,
    length,
    blocks,
    scale_log2,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
):
    block = tl.program_id(1)
    pair = tl.program_id(2).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    dim = tl.arange(0, DIM)
    row = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = row < rows
    query = tl.load(queries + (pair * rows + row)[:, None] * DIM + dim[None, :], mask=inside[:, None], other=0.0)
    mean = (pair * blocks + block) * DIM + dim
    key_mean = tl.load(key_means + mean).to(tl.float32)
    value_mean = tl.load(value_means + mean).to(tl.float32)
    order = tl.load(index + pair).to(tl.int64)
    start = tl.load(offsets + order * (blocks + 1) + block)
    end = tl.load(offsets + order * (blocks + 1) + block + 1)

    # exact: sum of exp(2 s) |v|^2, cross: sum of exp(s) v.w, both in units of exp2(top); base 2 throughout.
    pooled_score = tl.sum(query.to(tl.float32) * key_mean[None, :], axis=1) * scale_log2
    top = pooled_score
    exact = tl.zeros((QUERIES,), tl.float32)
    cross = tl.zeros((QUERIES,), tl.float32)
    for first in range(start, end, KEYS):
        position = first + tl.arange(0, KEYS)
        member = position < end
        token = tl.load(tokens + order * length + position, mask=member, other=0).to(tl.int64)
        keys = tl.load(
            k + batch * k_batch + head * k_head + token[:, None] * k_token + dim[None, :],
            mask=member[:, None],
            other=0.0,
        )
        values = tl.load(
            v + batch * v_batch + head * v_head + token[:, None] * v_token + dim[None, :],
            mask=member[:, None],
            other=0.0,
        ).to(tl.float32)
        squares = tl.sum(values * values, axis=1)
        along = tl.sum(values * value_mean[None, :], axis=1)
        scores = tl.where(member[None, :], tl.dot(query, tl.trans(keys)) * scale_log2, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        exact = exact * shrink * shrink + tl.sum(weights * weights * squares[None, :], axis=1)
        cross = cross * shrink + tl.sum(weights * along[None, :], axis=1)
        top = new_top

    pooled = tl.exp2(pooled_score - top)
    size = (end - start).to(tl.float32)
    error = exact - 2 * pooled * cross + pooled * pooled * size * tl.sum(value_mean * value_mean, axis=0)
    # NaN stays, which a GPU's maximum would drop: it is no error of 0.
    error = tl.maximum(error, 0.0, propagate_nan=tl.PropagateNan.ALL)
    natural = (tl.log2(error) + 2 * top) * 0.6931471805599453
    natural = tl.where(size > 0, natural, float("-inf"))
    tl.store(out + (pair * rows + row) * blocks + block, natural, mask=inside)
