"""svg1: a band along the order of the axes that suits each head (Sparse VideoGen, arXiv 2502.01776).

The published heads are spatial (a band frame by frame) or temporal (a band along time at each place); here a head may
choose among all six orders of (time, height, width), as PAROAttention (arXiv 2506.16054) does. A few rows, spread over
the whole video, are computed with every band and with all keys; the band that comes closest is taken, and kept until
queries and keys have drifted. The profiled map is the one that is executed (before top_p prunes it), made from
positions; the first frame is attended by everything.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import AttentionCall
from ..layout import spread
from ..plan import SparsePlan
from ..spending import Spending
from .blocks import Grid, VideoBlocks, axes_order, block_order, block_sizes, cut
from .select import always_on, prune
from .static import StaticMap, nearest, overlap, target_density
from .steps import step

ROWS = 64
# Relative change of a head's sampled queries and keys that asks for a new choice.
DRIFT = 0.5
PROFILE_ELEMENTS = 1 << 24  # scores held at once while profiling
AXES: tuple[Grid, ...] = tuple((a, b, c) for a, b, c in itertools.permutations(range(3)))


class Bands(NamedTuple):
    """The band of every axis order. rows: int64 [R], the sampled tokens; visible: bool [6, R, N], what they see;
    plan: keep is [6, Q, K] and stands for no head yet; always: bool [6, Q, K], what top_p may not take away."""

    rows: Tensor
    visible: Tensor
    plan: SparsePlan
    always: Tensor


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Per (batch row, head) the band along one of the six axis orders; top_p prunes inside it."""
    target = target_density(spending)
    key = ("svg1", call.layout, target, call.q.device)
    bands: Bands = call.static.get(key, lambda: _bands(call, target))
    probe = torch.cat([call.q[:, :, bands.rows], call.k[:, :, bands.rows]], dim=2)
    remembered = call.memory.load()
    if remembered is None:
        choice = call.once("choice", lambda: profile(call, bands))
        call.memory.store(choice, probe)
    else:
        choice, before = remembered
        change = (probe.float() - before.float()).square().sum((2, 3)) / before.float().square().sum((2, 3))
        call.memory.forget_if((change > DRIFT**2).any(1))
    shared = bands.plan
    chosen = SparsePlan(
        queries=replace(shared.queries, index=choice),
        keys=replace(shared.keys, index=choice),
        keep=shared.keep[choice.long()],
    )
    return prune(call, spending, chosen, bands.always[choice.long()])


@step("profile")
def profile(call: AttentionCall, bands: Bands) -> Tensor:
    """The axis order whose band gives the sampled rows the output nearest to attention over all keys: int32 [B, H]."""
    batch, heads, length, _ = call.q.shape
    k, v = call.k.transpose(2, 3), call.v
    error = torch.zeros(len(AXES), batch, heads, device=call.q.device)
    step = max(1, PROFILE_ELEMENTS // (batch * heads * length))
    for start in range(0, len(bands.rows), step):
        part = slice(start, start + step)
        scores = (call.q[:, :, bands.rows[part]] @ k).float() * call.scale
        weights = scores.softmax(-1)
        exact = (weights.to(v.dtype) @ v).float()
        for order in range(len(AXES)):
            seen = weights * bands.visible[order, part]
            total = seen.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            error[order] += ((seen.to(v.dtype) @ v).float() / total - exact).square().sum((2, 3))
    return error.argmin(0).int()


def _bands(call: AttentionCall, target: float) -> Bands:
    layout, device = call.layout, call.q.device
    maps = [band_map(layout.grid, axes, target) for axes in AXES]
    index = torch.zeros(1, 1, dtype=torch.int32, device=device)
    plan = SparsePlan(
        queries=block_order(layout, [band.queries for band in maps], index),
        keys=block_order(layout, [band.keys for band in maps], index),
        keep=always_on(torch.stack([band.keep for band in maps])).to(device),
    )
    rows = spread(layout.video, min(ROWS, layout.video), torch.device("cpu"))
    visible = torch.ones(len(AXES), len(rows), layout.total, dtype=torch.bool)
    video = slice(layout.prefix, layout.prefix + layout.video)
    for order, band in enumerate(maps):
        query_of, key_of = band.queries.block_of_token(), band.keys.block_of_token()
        visible[order, :, video] = band.keep[query_of[rows]][:, key_of]
    always = always_on(torch.stack([band.always for band in maps])).to(device)
    return Bands((rows + layout.prefix).to(device), visible.to(device), plan, always)


def band_map(grid: Grid, axes: tuple[int, int, int], target: float) -> StaticMap:
    """The widest band along one order of the axes whose density does not exceed `target`; at the ends of the video it
    keeps its width. The first key blocks are the first frame, which everything attends; a single frame has none."""
    query_size, key_size = block_sizes(math.prod(grid))
    order = axes_order(grid, axes)
    queries = cut(order, query_size)
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order))
    first = grid[1] * grid[2] if grid[0] > 1 else 0
    later = (grid[0] - (first > 0), *grid[1:])
    rest = cut(axes_order(later, axes) + first, key_size)
    sink = cut(torch.arange(first), key_size) if first else None
    keys = (
        rest
        if sink is None
        else VideoBlocks(torch.cat([sink.tokens, rest.tokens]), torch.cat([sink.offsets, rest.offsets[1:] + first]))
    )
    reach = max(0.0, target * len(order) - first) / 2
    centres = queries.means(position).clamp(reach, len(order) - 1 - reach)
    apart = (keys.means(position) - centres[:, None]).abs()
    always = overlap(queries, keys)
    always[:, : 0 if sink is None else len(sink.sizes())] = True
    return nearest(queries, keys, apart, always, target)
