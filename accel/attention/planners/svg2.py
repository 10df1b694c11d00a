"""SVG2: semantic-aware permutation (arXiv 2505.18875).

Queries and keys are clustered apart; the cluster means say which key clusters hold the attention mass of a
query cluster. What differs from the published code: scores in fp32 from end to end, warm starts kept per
conditioning branch and layer and dropped with the run, any batch size, no random generator, no host sync.
"""

from __future__ import annotations

import torch

from ....kernels.top_p import select_blocks
from ..budget import Budget
from ..clusters import (
    KEY_TOKENS_PER_CLUSTER,
    QUERY_TOKENS_PER_CLUSTER,
    Clusters,
    cluster_count,
    kmeans_clusters,
    sample_centroids,
)
from ..layout import TokenLayout
from ..plan import BlockOrder, SparsePlan
from ..state import WarmStart

FIRST_ITERATIONS = 8
WARM_ITERATIONS = 2


def plan(
    q: torch.Tensor,
    k: torch.Tensor,
    layout: TokenLayout,
    budget: Budget,
    warm_start: WarmStart,
    *,
    scale: float,
    backend: str,
) -> SparsePlan:
    """Chooses key blocks for q, k [B, H, N, D]: block 0 of both orders holds the tokens that are not video
    (kept by all, keeping all), the others are the clusters of the video tokens."""
    video = slice(layout.prefix, layout.prefix + layout.video)
    q_video, k_video = q[:, :, video], k[:, :, video]

    start = warm_start.load()
    iterations = FIRST_ITERATIONS if start is None else WARM_ITERATIONS
    q_start, k_start = start or (
        sample_centroids(q_video, cluster_count(layout.video, QUERY_TOKENS_PER_CLUSTER)),
        sample_centroids(k_video, cluster_count(layout.video, KEY_TOKENS_PER_CLUSTER)),
    )
    query_clusters = kmeans_clusters(q_video, q_start, iterations, backend=backend)
    key_clusters = kmeans_clusters(k_video, k_start, iterations, backend=backend)
    warm_start.store(query_clusters.centroids, key_clusters.centroids)

    keep, capped = select_blocks(
        attention_mass(query_clusters, key_clusters, scale),
        key_clusters.sizes(),
        top_p=budget.top_p,
        floor=budget.floor,
        max_density=budget.max_density,
        backend=backend,
    )
    # The block of other tokens goes first in both orders and is always on, both ways.
    keep = torch.nn.functional.pad(keep, (1, 0, 1, 0), value=True)
    return SparsePlan(
        queries=block_order(query_clusters, layout),
        keys=block_order(key_clusters, layout),
        keep=keep,
        capped=capped,
    )


def attention_mass(queries: Clusters, keys: Clusters, scale: float) -> torch.Tensor:
    """Estimated attention mass of every key cluster for every query cluster: fp32 [B, H, Cq, Ck].

    A softmax over the centroids' scores in which a cluster of n keys weighs n times; rows sum to one.
    """
    scores = queries.centroids.float() @ keys.centroids.float().transpose(-1, -2)
    return (scores.mul_(scale) + keys.sizes().float().log().unsqueeze(-2)).softmax(dim=-1)


def block_order(clusters: Clusters, layout: TokenLayout) -> BlockOrder:
    """Order of the whole sequence, one per (batch row, head): the other tokens, then cluster by cluster."""
    batch, heads, _ = clusters.order.shape
    device = clusters.order.device
    others = torch.cat(
        [
            torch.arange(layout.prefix, device=device, dtype=torch.int32),
            torch.arange(layout.prefix + layout.video, layout.total, device=device, dtype=torch.int32),
        ]
    )
    rows = batch * heads
    video = (clusters.order + layout.prefix).to(torch.int32).view(rows, layout.video)
    offsets = (clusters.offsets + layout.extra).view(rows, -1)
    return BlockOrder(
        tokens=torch.cat([others.expand(rows, -1), video], dim=1),
        offsets=torch.nn.functional.pad(offsets, (1, 0)),
        index=torch.arange(rows, device=device, dtype=torch.int32).view(batch, heads),
    )
