"""Batched k-means over the tokens of every head (Lloyd's algorithm, squared Euclidean distance).

flash-kmeans is a row of the bench of planning (tests/bench) and not used here: in version 0.3.1 the host waits for the
GPU after every iteration, and means are summed by atomics in an order of chance, so that one seed could give two
results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from ....kernels import kmeans
from ....kernels.block_mean import block_mean
from ....kernels.group import group
from ..call import AttentionCall
from ..layout import TokenLayout, spread
from ..plan import BlockOrder
from .steps import step

FIRST_ITERATIONS = 8
WARM_ITERATIONS = 2
MIN_CLUSTERS = 16
MIN_TOKENS_PER_CLUSTER = 16


class Granularity(NamedTuple):
    """tokens: average tokens per cluster of a long sequence; a shorter one is given `enough` clusters all the same,
    down to an average of `least` tokens."""

    tokens: int
    enough: int
    least: int

    def count(self, video: int) -> int:
        """Clusters of `video` tokens: at least 16 where that leaves 16 tokens to each, and at least one."""
        size = min(self.tokens, max(self.least, video // self.enough))
        return max(1, min(max(MIN_CLUSTERS, video // size), video // MIN_TOKENS_PER_CLUSTER))


# Query clusters must fill an MMA tile, key clusters may be fine (SVG2, arXiv 2505.18875, appendix D: 300 and 1000
# clusters at 75,600 tokens, at least 64 tokens to a query cluster). Short videos have as many things to tell apart as
# long ones: with 256 and 76 tokens to a cluster, blocks of the raster do better at 8,640 tokens.
QUERIES = Granularity(tokens=256, enough=256, least=64)
KEYS = Granularity(tokens=76, enough=512, least=32)


@dataclass(frozen=True)
class Clusters:
    """centroids [B, H, C, D] in the tokens' dtype: the means of the members, of which
    order int32 [B, H, N] lists the tokens cluster by cluster and offsets int32 [B, H, C + 1] the ends."""

    centroids: torch.Tensor
    order: torch.Tensor
    offsets: torch.Tensor

    def sizes(self) -> torch.Tensor:
        """Members per cluster: int32 [B, H, C]."""
        return self.offsets.diff(dim=-1)

    @step("orders")
    def block_order(self, layout: TokenLayout) -> BlockOrder:
        """Order of the whole sequence, one per (batch row, head): the tokens that are not video, then cluster by
        cluster."""
        batch, heads, _ = self.order.shape
        device = self.order.device
        others = torch.cat(
            [
                torch.arange(layout.prefix, device=device, dtype=torch.int32),
                torch.arange(layout.prefix + layout.video, layout.total, device=device, dtype=torch.int32),
            ]
        )
        rows = batch * heads
        video = (self.order + layout.prefix).view(rows, layout.video)
        offsets = (self.offsets + layout.extra).view(rows, -1)
        return BlockOrder(
            tokens=torch.cat([others.expand(rows, -1), video], dim=1),
            offsets=torch.nn.functional.pad(offsets, (1, 0)),
            index=torch.arange(rows, device=device, dtype=torch.int32).view(batch, heads),
        )


def warm_clusters(call: AttentionCall) -> tuple[Clusters, Clusters]:
    """Clusters of the call's video queries and keys, from where this layer's last ones ended; made once in a call."""
    return call.once("clusters", lambda: _warm_clusters(call))


def _warm_clusters(call: AttentionCall) -> tuple[Clusters, Clusters]:
    video = slice(call.layout.prefix, call.layout.prefix + call.layout.video)
    tokens = call.q[:, :, video], call.k[:, :, video]
    remembered = call.memory.load()
    if remembered is None:
        starts, iterations = _first_centroids(tokens), FIRST_ITERATIONS
    else:
        starts, iterations = remembered, WARM_ITERATIONS
    queries, keys = (
        kmeans_clusters(x, start, iterations, backend=call.backend) for x, start in zip(tokens, starts, strict=True)
    )
    call.memory.store(queries.centroids, keys.centroids)
    return queries, keys


def _first_centroids(tokens: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    granularities = QUERIES, KEYS
    return tuple(sample_centroids(x, size.count(x.shape[2])) for x, size in zip(tokens, granularities, strict=True))


@step("clustering")
def sample_centroids(x: torch.Tensor, count: int) -> torch.Tensor:
    """`count` tokens of x [B, H, N, D], spread over the sequence: [B, H, count, D]."""
    return x.index_select(2, spread(x.shape[2], count, x.device))


@step("clustering")
def kmeans_clusters(x: torch.Tensor, centroids: torch.Tensor, iterations: int, *, backend: str) -> Clusters:
    """`iterations` rounds of k-means on x [B, H, N, D] from centroids [B, H, C, D].

    An empty cluster keeps its centroid. No tensor of N x C elements, no host sync, no atomics: equal inputs
    give equal results.
    """
    batch, heads, count, _ = centroids.shape
    problems = torch.arange(batch * heads, device=x.device, dtype=torch.int32).view(batch, heads)
    for _ in range(iterations):
        order, offsets = group(kmeans.assign(x, centroids, backend=backend), count, backend=backend)
        centroids = block_mean(
            x, order.flatten(0, 1), offsets.flatten(0, 1), problems, empty=centroids, backend=backend
        )
    return Clusters(centroids, order, offsets)
