"""Blocks of like tokens that are all full: leaves of principal axis trees over the queries and keys of every head.

SVG2 (arXiv 2505.18875) clusters tokens so that a mean speaks for all of a block. Its clusters end inside the tiles of
the attention kernel, which multiplies those whole; leaves of a tree have the size of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ....kernels.axis_tree import tree_order
from ..call import AttentionCall
from ..layout import TokenLayout, spread
from ..plan import BlockOrder
from .blocks import block_sizes, tall_chunks
from .steps import step

SAMPLES = 4096  # tokens that the weight of differences is found from


class Cut(NamedTuple):
    """What blocks of one size have in common in all heads. others: int32, positions of the tokens that are not video;
    offsets: int32 [1, blocks + 1], tall_chunks: as a BlockOrder has them."""

    size: int
    others: Tensor
    offsets: Tensor
    tall_chunks: int | None


def tree_blocks(call: AttentionCall) -> tuple[BlockOrder, BlockOrder]:
    """Blocks of the call's queries and keys, an order for every batch row and head: block 0 holds the tokens that are
    not video, the others are leaves."""
    layout, device = call.layout, call.q.device
    cuts = call.static.get(
        ("tree", layout, device), lambda: [_cut(layout, size, device) for size in block_sizes(layout.video)]
    )
    video = slice(layout.prefix, layout.prefix + layout.video)
    queries, keys = call.q[:, :, video], call.k[:, :, video]
    # What sets two keys apart is how differently the queries score them, and the other way round.
    weights = second_moment(keys), second_moment(queries)
    query_order, key_order = (
        _block_order(_tree_order(x, weight, cut.size, call.backend) + layout.prefix, cut)
        for x, weight, cut in zip((queries, keys), weights, cuts, strict=True)
    )
    return query_order, key_order


@step("trees")
def _tree_order(x: Tensor, weight: Tensor, size: int, backend: str) -> Tensor:
    return tree_order(x, weight, size, backend=backend)


@step("weights")
def second_moment(x: Tensor) -> Tensor:
    """Mean of x x^T over the tokens of x [B, H, N, D], some of them where there are many, divided by its trace: fp32
    [B, H, D, D]."""
    tokens = x.shape[2]
    if tokens > SAMPLES:
        x = x.index_select(2, spread(tokens, SAMPLES, x.device))
    rows = x.float()
    moment = rows.mT @ rows
    trace = moment.diagonal(dim1=2, dim2=3).sum(-1)[..., None, None]
    return moment / trace.clamp(min=torch.finfo(trace.dtype).tiny)


def _cut(layout: TokenLayout, size: int, device: torch.device) -> Cut:
    others = torch.cat([torch.arange(layout.prefix), torch.arange(layout.prefix + layout.video, layout.total)])
    ends = (torch.arange(-(-layout.video // size) + 1) * size).clamp(max=layout.video)
    offsets = torch.nn.functional.pad(ends + layout.extra, (1, 0))[None]
    return Cut(size, others.int().to(device), offsets.int().to(device), tall_chunks(offsets))


def _block_order(order: Tensor, cut: Cut) -> BlockOrder:
    batch, heads, _ = order.shape
    rows = batch * heads
    return BlockOrder(
        tokens=torch.cat([cut.others.expand(rows, -1), order.flatten(0, 1)], dim=1),
        offsets=cut.offsets.expand(rows, -1),
        index=torch.arange(rows, device=order.device, dtype=torch.int32).view(batch, heads),
        tall_chunks=cut.tall_chunks,
    )
