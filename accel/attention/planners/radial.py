"""radial: the window around a query's place shrinks with the distance in frames (Radial Attention, arXiv 2506.19852).

With dist frames between query and key, g = bit_length(dist) and s tokens a frame, tokens at most c * s / 2^g apart in
the raster see each other; neighbour frames do wholly; where that window is smaller than a block, only every n-th
frame is looked at, n = block / window. The first frame is seen by all. The published masks need tokens in
multiples of 128; here blocks never cross a frame, so any shape works. The factor c (published: 0.2 to 0.95) follows
from the density that is asked for. Static: top_p alone looks at the tokens.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..call import AttentionCall
from ..plan import SparsePlan
from ..spending import Spending
from .blocks import Grid, VideoBlocks, block_sizes
from .static import StaticMap, overlap, plan_static, target_density, widest

# Neighbour frames see each other wholly while c is at least this; below, no density would be low enough for a
# video of few frames.
WHOLE_NEIGHBOURS = 0.1


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Blocks of consecutive tokens of one frame, kept by distance in time and space."""
    return plan_static(call, spending, "radial", lambda: radial_map(call.layout.grid, target_density(spending)))


def radial_map(grid: Grid, target: float) -> StaticMap:
    """The widest radial map whose density does not exceed `target`."""
    frames, height, width = grid
    query_size, key_size = block_sizes(math.prod(grid))
    queries, keys = _frame_blocks(frames, height * width, query_size), _frame_blocks(frames, height * width, key_size)
    query_frame, query_place = _place(queries, height * width)
    key_frame, key_place = _place(keys, height * width)
    apart = (query_frame[:, None] - key_frame).abs()
    along = (query_place[:, None] - key_place).abs()
    octave = torch.tensor([dist.bit_length() for dist in range(frames)])[apart]
    first = (key_frame == 0) & torch.tensor(frames > 1)
    always = overlap(queries, keys) | first

    def around(exponent: float) -> StaticMap:
        factor = 2.0**exponent
        reach = factor * height * width / 2.0**octave
        near = min(1.0, factor / WHOLE_NEIGHBOURS) * height * width
        reach = torch.where(apart <= 1, near, reach)
        period = (min(key_size, height * width) / reach).long().clamp(min=1)
        keep = (along <= reach.clamp(min=key_size / 2)) & (apart % period == 0)
        return StaticMap(queries, keys, keep | always, always)

    return widest(around, -12.0, float(frames.bit_length()), target)


def _frame_blocks(frames: int, tokens: int, size: int) -> VideoBlocks:
    """Every frame cut into blocks of nearly equal size, at most `size`."""
    count = math.ceil(tokens / size)
    starts = (torch.arange(frames)[:, None] * tokens + torch.arange(count) * tokens // count).flatten()
    end = frames * tokens
    return VideoBlocks(torch.arange(end), torch.cat([starts, torch.tensor([end])]))


def _place(blocks: VideoBlocks, tokens: int) -> tuple[Tensor, Tensor]:
    """Frame int64 [blocks] and centre within the frame, in tokens, fp64 [blocks]."""
    start, end = blocks.offsets[:-1], blocks.offsets[1:]
    return start // tokens, (start % tokens) + (end - start - 1) / 2
