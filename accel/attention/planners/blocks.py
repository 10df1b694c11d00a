"""Orders of the video tokens, cut into blocks: what static and pooled patterns are made of.

All of it is made on the CPU, once for a layout. Blocks are small pieces of space and time where the order allows it:
tokens of one piece look alike, so their mean says more about them (Sliding Tile Attention, arXiv 2502.04507).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.attention_configs import QUERY_TILE
from ....kernels.gather import CHUNK, TALL
from ..layout import TokenLayout
from ..plan import BlockOrder
from .steps import step

Grid = tuple[int, int, int]

KEY_BLOCK = TALL
MIN_KEY_BLOCK = 16
MIN_KEY_BLOCKS = 24
# A query block fills a tile of the attention kernel.
QUERY_BLOCKS_OF_KEYS = QUERY_TILE // KEY_BLOCK
# Rows that tall chunks may add to those of small ones: what reading a chunk in one piece saves is not more than this.
MORE_PADDING = 1.05


class VideoBlocks(NamedTuple):
    """tokens int64 [V], position -> video token; offsets int64 [blocks + 1], first position of each block."""

    tokens: Tensor
    offsets: Tensor

    def sizes(self) -> Tensor:
        """Tokens per block, int64 [blocks]."""
        return self.offsets.diff()

    def block_of_position(self) -> Tensor:
        """int64 [V]."""
        return torch.arange(len(self.offsets) - 1).repeat_interleave(self.sizes())

    def block_of_token(self) -> Tensor:
        """int64 [V]."""
        return torch.empty_like(self.tokens).scatter_(0, self.tokens, self.block_of_position())

    def means(self, values: Tensor) -> Tensor:
        """Mean over each block of values [V] or [V, C] given for every video token: fp64 [blocks] or [blocks, C]."""
        out = torch.zeros(len(self.offsets) - 1, *values.shape[1:], dtype=torch.float64)
        out.index_add_(0, self.block_of_position(), values[self.tokens].double())
        sizes = self.sizes().clamp(min=1)
        return out / sizes.view(-1, *[1] * (values.ndim - 1))


def block_sizes(video: int) -> tuple[int, int]:
    """Largest query and key block for a sequence of `video` tokens: 128 and 64, less where that gives few blocks."""
    key = KEY_BLOCK
    while key > MIN_KEY_BLOCK and video < key * MIN_KEY_BLOCKS:
        key //= 2
    return QUERY_BLOCKS_OF_KEYS * key, key


def coordinates(grid: Grid) -> Tensor:
    """(t, h, w) of every video token: int64 [V, 3]."""
    return torch.cartesian_prod(*(torch.arange(size) for size in grid)).view(-1, 3)


def cut(tokens: Tensor, size: int) -> VideoBlocks:
    """Consecutive blocks of nearly equal size, at most `size`."""
    count = math.ceil(len(tokens) / size)
    return VideoBlocks(tokens, torch.arange(count + 1) * len(tokens) // count)


def axes_order(grid: Grid, axes: tuple[int, int, int]) -> Tensor:
    """The tokens with the axes (0 time, 1 height, 2 width) nested in this order, the last one fastest: int64 [V]."""
    return torch.arange(math.prod(grid)).view(grid).permute(axes).flatten()


def cubes(grid: Grid, size: int) -> VideoBlocks:
    """Boxes of at most `size` tokens, as cubic as the grid allows; boxes of one axis differ by at most one token."""
    edges = [1, 1, 1]
    while math.prod(edges) * 2 <= size:
        growing = [axis for axis in (2, 1, 0) if edges[axis] < grid[axis]]
        if not growing:
            break
        edges[min(growing, key=lambda axis: edges[axis])] *= 2
    place = coordinates(grid)
    counts = [math.ceil(n / edge) for n, edge in zip(grid, edges, strict=True)]
    box = torch.zeros(len(place), dtype=torch.int64)
    for axis, count in enumerate(counts):
        box = box * count + place[:, axis] * count // grid[axis]
    sizes = torch.bincount(box, minlength=math.prod(counts))
    return VideoBlocks(box.argsort(stable=True), torch.nn.functional.pad(sizes.cumsum(0), (1, 0)))


def morton(grid: Grid) -> Tensor:
    """The tokens along a Z-order curve through (t, h, w): int64 [V]."""
    place = coordinates(grid)
    code = torch.zeros(len(place), dtype=torch.int64)
    for bit in range(max(grid).bit_length()):
        for axis in range(3):
            code |= ((place[:, axis] >> bit) & 1) << (3 * bit + 2 - axis)
    return code.argsort(stable=True)


def ordered_blocks(grid: Grid, token_order: str, size: int) -> VideoBlocks:
    """Blocks of at most `size` tokens in the order raster, cube or morton; auto is cube."""
    if token_order in ("auto", "cube"):
        return cubes(grid, size)
    return cut(morton(grid) if token_order == "morton" else axes_order(grid, (0, 1, 2)), size)


@step("orders")
def block_order(layout: TokenLayout, orders: list[VideoBlocks], index: Tensor) -> BlockOrder:
    """Orders of the whole sequence on the device of index int32 [B, H]: block 0 holds the tokens that are not video,
    the others the video's."""
    others = torch.cat([torch.arange(layout.prefix), torch.arange(layout.prefix + layout.video, layout.total)])
    tokens = torch.stack([torch.cat([others, order.tokens + layout.prefix]) for order in orders])
    offsets = torch.stack([torch.nn.functional.pad(order.offsets + layout.extra, (1, 0)) for order in orders])
    return BlockOrder(tokens.int().to(index.device), offsets.int().to(index.device), index, tall_chunks(offsets))


def tall_chunks(offsets: Tensor) -> int | None:
    """BlockOrder.tall_chunks of orders with the block offsets [R, blocks + 1], which are on the CPU."""
    sizes = offsets.diff(dim=1)
    tall, small = (int((-(-sizes // chunk)).sum(1).amax()) for chunk in (TALL, CHUNK))
    return tall if tall * TALL <= MORE_PADDING * small * CHUNK else None
