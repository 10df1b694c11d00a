"""tree: blocks of like tokens that are all full; their means say what to keep, and stand in for what is not kept.

As pooled, but a block is a leaf of a principal axis tree over a head's queries or keys (trees.py), not a piece of the
picture; as svg2, but no tile of the attention kernel is multiplied in part only. Nothing is remembered between steps.
"""

from __future__ import annotations

from ..call import AttentionCall
from ..plan import SparsePlan
from ..spending import Spending
from .pooled import plan_by_means
from .trees import tree_blocks


def plan(call: AttentionCall, spending: Spending) -> SparsePlan:
    """Leaves of 128 queries and 64 keys, less in short videos, kept by the mass that their means promise; with a
    tail."""
    return plan_by_means(call, spending, *call.once("tree", lambda: tree_blocks(call)))
