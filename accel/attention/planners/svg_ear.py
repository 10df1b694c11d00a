"""svg_ear: SVG2's clusters, with a tail for what is skipped, and the exact part where the tail errs most
(SVG-EAR, arXiv 2603.08982).

A query cluster spends as many keys as SVG2's top-p would, but on the key clusters whose pooled stand-in would be
furthest from the truth, by an estimate at the query cluster's mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.block_sparse_attention import Tail
from ....kernels.compensation_error import log_compensation_error
from ....kernels.top_p import select_blocks
from ..call import AttentionCall
from ..plan import BlockOrder, SparsePlan
from ..spending import Spending
from .clusters import Clusters, warm_clusters
from .select import always_on, make_tail
from .steps import step
from .svg2 import select_by_mass


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Blocks as in svg2; the tail's keys and values are the means of the key clusters."""
    queries, keys = warm_clusters(call)
    query_order, key_order = queries.block_order(call.layout), keys.block_order(call.layout)
    tail = call.once("tail", lambda: make_tail(call, key_order))
    spent, capped = select_by_mass(call, spending, queries, keys)
    sizes = keys.sizes()
    limit = torch.where(spent, sizes.unsqueeze(-2), 0).sum(-1)
    priority = call.once("priority", lambda: _priority(call, queries, key_order, tail, sizes))
    with step("map"):
        keep, _ = select_blocks(priority, sizes, top_p=1.0, floor=0.0, limit=limit, backend=call.backend)
    return SparsePlan(query_order, key_order, always_on(keep), capped, tail)


@step("errors")
def _priority(call: AttentionCall, queries: Clusters, keys: BlockOrder, tail: Tail, sizes: Tensor) -> Tensor:
    """Error of the tail per key, relative to the worst of the row: fp32 [B, H, Cq, Ck] in 0..1."""
    error = log_compensation_error(
        queries.centroids,
        call.k,
        call.v,
        keys.tokens,
        keys.offsets[:, 1:],
        keys.index,
        tail.keys[:, :, 1:],
        tail.values[:, :, 1:],
        scale=call.scale,
        backend=call.backend,
    )
    error = error - sizes.clamp(min=1).log().unsqueeze(-2)
    # A row whose tail is exact everywhere has nothing but -inf.
    return (error - error.amax(-1, keepdim=True).clamp(min=torch.finfo(error.dtype).min)).exp()
