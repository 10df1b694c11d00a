"""window: a local window in space and time, of one size for every query; where the video ends it moves inside.

Sliding Tile Attention (arXiv 2502.04507) and CLEAR (arXiv 2412.16112) use such windows. Here blocks are boxes of any
grid, and the window's extent follows from the density that is asked for. Static: top_p alone looks at the tokens.
"""

from __future__ import annotations

import math

import torch

from ..call import AttentionCall
from ..plan import SparsePlan
from ..spending import Spending
from .blocks import Grid, block_sizes, coordinates, ordered_blocks
from .static import StaticMap, nearest, overlap, plan_static, target_density


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Blocks by call.token_order (auto: cube), each attending the blocks in a window around it."""
    return plan_static(
        call, spending, "window", lambda: window_map(call.layout.grid, call.token_order, target_density(spending))
    )


def window_map(grid: Grid, token_order: str, target: float) -> StaticMap:
    """Each query block keeps the key blocks nearest to the centre of its window, up to the density `target`.

    Distances are the largest over the axes, in fractions of the video's extents: the window is a box. The centre is the
    block's own, moved inside by the window's radius where the video ends.
    """
    queries, keys = (ordered_blocks(grid, token_order, size) for size in block_sizes(math.prod(grid)))
    place = (coordinates(grid) + 0.5) / torch.tensor(grid)
    extended = max(1, sum(size > 1 for size in grid))
    radius = target ** (1 / extended) / 2
    centres = queries.means(place).clamp(radius, 1 - radius)
    apart = (centres[:, None] - keys.means(place)).abs().amax(-1)
    return nearest(queries, keys, apart, overlap(queries, keys), target)
