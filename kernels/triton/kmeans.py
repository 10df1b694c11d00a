"""Triton kernel of kmeans.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from .. import registry


class Config(NamedTuple):
    """Tokens and centroids of one tile, warps of a program, pipeline stages of the centroid loop."""

    tokens: int
    centroids: int
    warps: int
    stages: int


CONFIGS = {
    "sm_80": Config(128, 64, 8, 3),
    "gfx942": Config(128, 64, 8, 2),
    "gfx1100": Config(64, 32, 8, 2),
    "gfx1201": Config(64, 32, 4, 2),
    "interpreter": Config(64, 32, 4, 1),
}


def launch_assign(x: Tensor, centroids: Tensor, half_norms: Tensor) -> Tensor:
    """See kmeans.assign."""
    batch, heads, tokens, dim = x.shape
    config = registry.nearest(CONFIGS, registry.architecture(x.device))
    # Whole tiles, so that their loads are wide and need no masks. What fills the last one is infinitely far.
    missing = -centroids.shape[2] % config.centroids
    if missing:
        centroids = F.pad(centroids, (0, 0, 0, missing))
        half_norms = F.pad(half_norms, (0, missing), value=math.inf)
    labels = x.new_empty(batch, heads, tokens, dtype=torch.int32)
    with torch.cuda.device_of(x):
        _assign[(triton.cdiv(tokens, config.tokens), batch * heads)](
            x,
            centroids.contiguous(),
            half_norms.contiguous(),
            labels,
            *x.stride()[:3],
            heads,
            tokens,
            centroids.shape[2],
            DIM=dim,
            TOKENS=config.tokens,
            CENTROIDS=config.centroids,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return labels


@triton.jit(do_not_specialize=["heads", "tokens"])
def _assign(
    x,
    centroids,
    half_norms,
    labels,
    x_batch,
    x_head,
    x_token,
    heads,
    tokens,
    clusters,
    DIM: tl.constexpr,
    TOKENS: tl.constexpr,
    CENTROIDS: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    dim = tl.arange(0, DIM)
    source = x + (pair // heads) * x_batch + (pair % heads) * x_head
    inside = token < tokens
    rows = tl.load(source + token.to(tl.int64)[:, None] * x_token + dim[None, :], mask=inside[:, None], other=0.0)

    # One running best per tile column; comparing columns once at the end spares a reduction per tile. Only a
    # strictly better score replaces, and the lowest index wins at the end, so ties go to the lowest index
    # (and so does NaN).
    lane = tl.arange(0, CENTROIDS)
    best = tl.full((TOKENS, CENTROIDS), float("-inf"), tl.float32)
    first = tl.zeros((TOKENS, CENTROIDS), tl.int32)
    for start in range(0, clusters, CENTROIDS):
        cluster = pair * clusters + start + lane
        columns = tl.load(centroids + cluster[:, None] * DIM + dim[None, :])
        score = tl.dot(rows, tl.trans(columns)) - tl.load(half_norms + cluster)[None, :]
        better = score > best
        best = tl.where(better, score, best)
        first = tl.where(better, start, first)
    winner = best == tl.max(best, axis=1)[:, None]
    label = tl.min(tl.where(winner, first + lane[None, :], 2147483647), axis=1)
    tl.store(labels + pair * tokens + token, label, mask=inside)
