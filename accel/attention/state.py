"""What a run remembers between model evaluations: the cluster centres of every branch and layer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence

import torch

Pair = tuple[torch.Tensor, torch.Tensor]

DEFAULT_BYTES = 1 << 30


# A pair is given up for a new one when this many times the cache's length of newer pairs came since its last use.
_STALE = 4


class ClusterCache:
    """Pairs of (query, key) centroids with a byte budget.

    Layers come round in a cycle, so when they do not all fit, evicting the least recently used pair would throw out
    each one just before its turn. A full cache therefore refuses new pairs (`refused` counts them) while the old
    ones are in use; only pairs that nobody asked for in a long time leave, the least recently used first.
    Safe to share between the threads of a multi-GPU run.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.refused = 0
        self._pairs: OrderedDict[Hashable, tuple[int, Pair]] = OrderedDict()
        self._clock = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._pairs)

    def get(self, key: Hashable) -> Pair | None:
        with self._lock:
            if key not in self._pairs:
                return None
            _, pair = self._pairs[key]
            self._touch(key, pair)
            return pair

    def put(self, key: Hashable, pair: Pair) -> None:
        with self._lock:
            self._clock += 1
            self._drop(key)
            while self.bytes + _bytes(pair) > self.max_bytes:
                oldest = next(iter(self._pairs), None)
                if oldest is None or self._clock - self._pairs[oldest][0] <= _STALE * len(self._pairs):
                    self.refused += 1
                    return
                self._drop(oldest)
            self._touch(key, pair)
            self.bytes += _bytes(pair)

    def clear(self) -> None:
        with self._lock:
            self._pairs.clear()
            self.bytes = 0

    def _touch(self, key: Hashable, pair: Pair) -> None:
        self._pairs[key] = (self._clock, pair)
        self._pairs.move_to_end(key)

    def _drop(self, key: Hashable) -> None:
        if key in self._pairs:
            self.bytes -= _bytes(self._pairs.pop(key)[1])


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class WarmStart:
    """The centroids of one attention call, kept apart for each conditioning branch of its batch.

    branches: one id per equal part of the batch, in order; none where the parts are unknown, and then nothing is
    remembered. Two branches evaluated in one batch or one after the other find the same state.
    """

    def __init__(self, cache: ClusterCache, branches: Sequence[Hashable], call: Hashable) -> None:
        self._cache = cache
        self._keys = [(branch, call) for branch in branches]

    def load(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Query and key centroids [B, H, C, D] of the last evaluation, or None if a branch has none."""
        pairs = [self._cache.get(key) for key in self._keys]
        if not pairs or any(pair is None for pair in pairs):
            return None
        if len(pairs) == 1:
            return pairs[0]
        return torch.cat([q for q, _ in pairs]), torch.cat([k for _, k in pairs])

    def store(self, q: torch.Tensor, k: torch.Tensor) -> None:
        """Remembers query and key centroids [B, H, C, D]."""
        parts = len(self._keys)
        if parts == 1:
            self._cache.put(self._keys[0], (q, k))
            return
        for i, key in enumerate(self._keys):
            rows = slice(i * q.shape[0] // parts, (i + 1) * q.shape[0] // parts)
            # A copy, so that dropping one branch frees its memory.
            self._cache.put(key, (q[rows].clone(), k[rows].clone()))
