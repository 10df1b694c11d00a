"""What a run remembers between model evaluations: the cluster centres of every branch and layer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

Pair = tuple[torch.Tensor, torch.Tensor]

DEFAULT_BYTES = 1 << 30


class ClusterCache:
    """Pairs of (query, key) centroids with a byte budget; the least recently used pair leaves first.

    Safe to share between the threads of a multi-GPU run.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._pairs: OrderedDict[Hashable, Pair] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, key: Hashable) -> Pair | None:
        with self._lock:
            if key in self._pairs:
                self._pairs.move_to_end(key)
            return self._pairs.get(key)

    def put(self, key: Hashable, pair: Pair) -> None:
        with self._lock:
            self.bytes += _bytes(pair) - _bytes(self._pairs.pop(key, ()))
            self._pairs[key] = pair
            while self.bytes > self.max_bytes and self._pairs:
                self.bytes -= _bytes(self._pairs.popitem(last=False)[1])

    def clear(self) -> None:
        with self._lock:
            self._pairs.clear()
            self.bytes = 0


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class WarmStart:
    """The centroids of one attention call, kept apart for each conditioning branch of its batch.

    branches: one id per equal part of the batch, in order. Two branches evaluated in one batch or one after
    the other find the same state.
    """

    def __init__(self, cache: ClusterCache, branches: Sequence[Hashable], call: Hashable) -> None:
        self._cache = cache
        self._keys = [(branch, call) for branch in branches]

    def load(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Query and key centroids [B, H, C, D] of the last evaluation, or (None, None) if a branch has none."""
        pairs = [self._cache.get(key) for key in self._keys]
        if any(pair is None for pair in pairs):
            return None, None
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([q for q, _ in pairs]), torch.cat([k for _, k in pairs])

    def store(self, q: torch.Tensor, k: torch.Tensor) -> None:
        parts = len(self._keys)
        for key, q_part, k_part in zip(self._keys, q.chunk(parts), k.chunk(parts), strict=True):
            # A part of a larger batch is copied, so that evicting it frees its memory.
            self._cache.put(key, (q_part, k_part) if parts == 1 else (q_part.clone(), k_part.clone()))
