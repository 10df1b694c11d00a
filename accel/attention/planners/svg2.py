"""svg2: semantic-aware permutation (SVG2, arXiv 2505.18875).

Queries and keys are clustered apart; the cluster means say which key clusters hold the attention mass of a
query cluster. What differs from the published code: scores in fp32 from end to end, warm starts kept per
conditioning branch and layer and dropped with the run, any batch size, no random generator, no host sync.
"""

from __future__ import annotations

from torch import Tensor

from ..call import AttentionCall
from ..plan import SparsePlan
from ..spending import Spending
from .clusters import Clusters, warm_clusters
from .select import always_on, estimated_mass, keep_by_mass


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Block 0 of both orders holds the tokens that are not video (kept by all, keeping all), the others are the
    clusters of the video tokens."""
    queries, keys = warm_clusters(call)
    keep, capped = select_by_mass(call, spending, queries, keys)
    return SparsePlan(queries.block_order(call.layout), keys.block_order(call.layout), always_on(keep), capped)


def select_by_mass(call: AttentionCall, spending: Spending, queries: Clusters, keys: Clusters) -> tuple[Tensor, Tensor]:
    """Key clusters by the mass that the means promise: keep bool [B, H, Cq, Ck] and capped bool [B, H, Cq]."""
    sizes = keys.sizes()
    mass = call.once("mass", lambda: estimated_mass(queries.centroids, keys.centroids, sizes, call.scale))
    return keep_by_mass(call, spending, mass, sizes)
