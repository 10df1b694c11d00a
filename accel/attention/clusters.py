"""Batched k-means over the tokens of every head (Lloyd's algorithm, squared Euclidean distance)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels import kmeans

# Average tokens per cluster: query clusters must fill an MMA tile, key clusters may be fine
# (SVG2, arXiv 2505.18875, appendix D: 300 and 1000 clusters at 75,600 tokens).
QUERY_TOKENS_PER_CLUSTER = 256
KEY_TOKENS_PER_CLUSTER = 76
MIN_CLUSTERS = 16
MIN_TOKENS_PER_CLUSTER = 16


def cluster_count(tokens: int, tokens_per_cluster: int) -> int:
    """At least 16 clusters, at most one for every 16 tokens, and at least one."""
    return max(1, min(max(MIN_CLUSTERS, tokens // tokens_per_cluster), tokens // MIN_TOKENS_PER_CLUSTER))


@dataclass(frozen=True)
class Clusters:
    """centroids [B, H, C, D] in the tokens' dtype: the means of the members, of which
    order int64 [B, H, N] lists the tokens cluster by cluster and offsets int32 [B, H, C + 1] the ends."""

    centroids: torch.Tensor
    order: torch.Tensor
    offsets: torch.Tensor

    def sizes(self) -> torch.Tensor:
        """Members per cluster: int32 [B, H, C]."""
        return self.offsets.diff(dim=-1)


def sample_centroids(x: torch.Tensor, count: int) -> torch.Tensor:
    """`count` tokens of x [B, H, N, D], one from each of `count` equal stretches of the sequence.

    The place within a stretch follows the golden-ratio sequence, so that no axis of the video grid is
    favoured, no random generator is touched, and equal inputs give equal clusters. All tokens are distinct
    when N >= count.
    """
    tokens = x.shape[2]
    stretch = torch.arange(count, device=x.device, dtype=torch.float64)
    place = (stretch + (stretch * 0.6180339887498949).frac()) * (tokens / count)
    return x.index_select(2, place.long().clamp_(max=tokens - 1))


def kmeans_clusters(x: torch.Tensor, centroids: torch.Tensor, iterations: int, *, backend: str) -> Clusters:
    """`iterations` rounds of k-means on x [B, H, N, D] from centroids [B, H, C, D].

    An empty cluster keeps its centroid. No tensor of N x C elements, no host sync, no atomics: equal inputs
    give equal results.
    """
    count = centroids.shape[2]
    bounds = torch.arange(count + 1, device=x.device, dtype=torch.int32).expand(*x.shape[:2], count + 1).contiguous()
    for _ in range(iterations):
        labels = kmeans.assign(x, centroids, backend=backend)
        labels, order = labels.sort(dim=-1, stable=True)
        offsets = torch.searchsorted(labels, bounds, out_int32=True)
        centroids = kmeans.update(x, order, offsets, centroids, backend=backend)
    return Clusters(centroids, order, offsets)
