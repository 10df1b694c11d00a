"""What a pattern does to make a plan, for whoever counts its cost."""

from __future__ import annotations

import math
from typing import NamedTuple

from ....kernels.attention_configs import QUERY_TILE
from ....kernels.gather import CHUNK
from .blocks import block_sizes
from .clusters import KEYS, QUERIES


class Planning(NamedTuple):
    """What a pattern does in every call. clusters: k-means of queries and keys; trees: principal axis trees of both;
    means: tensors of which block means are taken; probe: scores of all keys for each query block; tail: pooled keys
    take part in the attention."""

    clusters: bool = False
    trees: bool = False
    means: int = 0
    probe: bool = False
    tail: bool = False

    def blocks(self, video: int) -> tuple[int, int]:
        """Query and key blocks of so many video tokens."""
        if self.clusters:
            return QUERIES.count(video), KEYS.count(video)
        query, key = block_sizes(video)
        return math.ceil(video / query), math.ceil(video / key)

    def padding(self, video: int) -> float:
        """Products that the kernel makes for each useful one: clusters end inside tiles and chunks, on average half of
        one before its end; blocks are made to fill them."""
        if not self.clusters:
            return 1.0
        queries, keys = self.blocks(video)
        return (1 + QUERY_TILE / 2 * queries / video) * (1 + CHUNK / 2 * keys / video)
