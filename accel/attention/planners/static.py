"""What the static patterns share: a map that depends on the layout alone, and how dense it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..call import AttentionCall
from ..plan import SparsePlan
from ..spending import Spending
from .blocks import VideoBlocks, block_order
from .select import always_on, prune
from .steps import step

# With max_density left at 1 a static pattern offers this part of the map, and top_p prunes inside it.
GENEROUS = 0.5
STEPS = 24


class StaticMap(NamedTuple):
    """Which key blocks each query block attends.

    keep: bool [Q, K] over the blocks of the video; always: bool [Q, K], those of them that top_p may not take away.
    """

    queries: VideoBlocks
    keys: VideoBlocks
    keep: Tensor
    always: Tensor

    def density(self) -> float:
        """Kept fraction of the video's map, by tokens."""
        query_sizes, key_sizes = self.queries.sizes().double(), self.keys.sizes().double()
        return float(query_sizes @ self.keep.double() @ key_sizes / (query_sizes.sum() * key_sizes.sum()))


def target_density(spending: Spending) -> float:
    """The density that a static pattern's map aims at, 0..1: the budget's max_density where it is given, and
    everything only if top_p asks for everything too."""
    return spending.max_density if spending.max_density < 1 or spending.everything else GENEROUS


def nearest(queries: VideoBlocks, keys: VideoBlocks, apart: Tensor, always: Tensor, target: float) -> StaticMap:
    """Each query block keeps the nearest key blocks, as many as fit into the density `target`.

    apart: fp64 [Q, K], the distances; always: bool [Q, K], blocks that are kept first and whatever the target.
    """
    order = apart.masked_fill(always, -1.0).argsort(dim=1, stable=True)
    fits = keys.sizes()[order].cumsum(1) <= target * len(keys.tokens)
    return StaticMap(queries, keys, torch.zeros_like(always).scatter_(1, order, fits) | always, always)


def overlap(queries: VideoBlocks, keys: VideoBlocks) -> Tensor:
    """bool [Q, K]: the two blocks have a token in common."""
    out = torch.zeros(len(queries.sizes()), len(keys.sizes()), dtype=torch.bool)
    out[queries.block_of_token(), keys.block_of_token()] = True
    return out


def widest(make: Callable[[float], StaticMap], low: float, high: float, target: float) -> StaticMap:
    """make(width) for the largest width in low..high whose density does not exceed `target`, make(low) if none does.

    Density must not fall with growing width, but for small steps.
    """
    best = make(high)
    if best.density() <= target:
        return best
    best = make(low)
    for _ in range(STEPS):
        middle = (low + high) / 2
        trial = make(middle)
        if trial.density() <= target:
            low, best = middle, trial
        else:
            high = middle
    return best


@step("map")
def plan_static(call: AttentionCall, spending: Spending, pattern: str, make: Callable[[], StaticMap]) -> SparsePlan:
    """The plan of a map that all heads share; `make` is called once in a run and device. top_p prunes inside it."""
    batch, heads = call.q.shape[:2]
    device = call.q.device

    def once() -> tuple[SparsePlan, Tensor]:
        video_map = make()
        index = torch.zeros(1, 1, dtype=torch.int32, device=device)
        queries, keys = (block_order(call.layout, [blocks], index) for blocks in (video_map.queries, video_map.keys))
        return SparsePlan(queries, keys, always_on(video_map.keep.to(device))), always_on(video_map.always.to(device))

    shared, always = call.static.get((pattern, call.layout, call.token_order, target_density(spending), device), once)
    index = shared.queries.index.expand(batch, heads)
    plan = SparsePlan(
        queries=replace(shared.queries, index=index),
        keys=replace(shared.keys, index=index),
        keep=shared.keep.expand(batch, heads, *shared.keep.shape),
    )
    return prune(call, spending, plan, always)
