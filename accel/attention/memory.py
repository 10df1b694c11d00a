"""What a run remembers between forwards: tensors of every branch and layer, and plans that never change."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

from .conditions import Conditions

Tensors = tuple[torch.Tensor, ...]

DEFAULT_BYTES = 1 << 30


# An entry is given up for a new one when this many times the cache's length of newer ones came since its last use.
_STALE = 4


class TensorCache:
    """Tuples of tensors with a byte budget.

    Layers come round in a cycle, so when they do not all fit, evicting the least recently used entry would throw out
    each one just before its turn. A full cache therefore refuses new entries (`refused` counts them) while the old
    ones are in use; only entries that nobody asked for in a long time leave, the least recently used first.
    Safe to share between the threads of a multi-GPU run.
    """

    def __init__(self, max_bytes: int = DEFAULT_BYTES) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.refused = 0
        self._entries: OrderedDict[Hashable, tuple[int, Tensors]] = OrderedDict()
        self._conditions = Conditions()
        self._clock = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Hashable) -> Tensors | None:
        with self._lock:
            if key not in self._entries:
                return None
            _, entry = self._entries[key]
            self._touch(key, entry)
            return entry

    def put(self, key: Hashable, entry: Tensors) -> None:
        with self._lock:
            self._clock += 1
            self._drop(key)
            while self.bytes + _bytes(entry) > self.max_bytes:
                oldest = next(iter(self._entries), None)
                if oldest is None or self._clock - self._entries[oldest][0] <= _STALE * len(self._entries):
                    self.refused += 1
                    return
                self._drop(oldest)
            self._touch(key, entry)
            self.bytes += _bytes(entry)

    def expire_if(self, key: Hashable, condition: torch.Tensor) -> None:
        """Drops the entry at the next `settle` if the bool scalar `condition`, which may still be being computed, is
        true."""
        with self._lock:
            self._conditions.ask(key, condition)

    def settle(self) -> None:
        """Acts on the conditions of `expire_if`. Waits for the device."""
        with self._lock:
            for key in self._conditions.read():
                self._drop(key)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._conditions = Conditions()
            self.bytes = 0

    def _touch(self, key: Hashable, entry: Tensors) -> None:
        self._entries[key] = (self._clock, entry)
        self._entries.move_to_end(key)

    def _drop(self, key: Hashable) -> None:
        if key in self._entries:
            self.bytes -= _bytes(self._entries.pop(key)[1])


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class LayerMemory:
    """What one attention call remembers, kept apart for each conditioning branch of its batch.

    branches: one id per equal part of the batch, in order; none where the parts are unknown, and then nothing is
    remembered. Two branches that run in one batch or one after the other find the same state.
    """

    def __init__(self, cache: TensorCache, branches: Sequence[Hashable], call: Hashable) -> None:
        self._cache = cache
        self._keys = [(branch, call) for branch in branches]

    def load(self) -> Tensors | None:
        """The tensors [B, ...] of the last `store`, or None if a branch has none."""
        entries = [self._cache.get(key) for key in self._keys]
        if not entries or any(entry is None for entry in entries):
            return None
        if len(entries) == 1:
            return entries[0]
        return tuple(torch.cat(parts) for parts in zip(*entries, strict=True))

    def store(self, *tensors: torch.Tensor) -> None:
        """Remembers tensors [B, ...]."""
        if len(self._keys) == 1:
            self._cache.put(self._keys[0], tensors)
            return
        for i, key in enumerate(self._keys):
            # A copy, so that dropping one branch frees its memory.
            self._cache.put(key, tuple(x[self._rows(i, len(x))].clone() for x in tensors))

    def forget_if(self, condition: torch.Tensor) -> None:
        """Forgets a branch before the next forward if `condition`, bool [B], turns out true for one of its
        rows; never waits."""
        for i, key in enumerate(self._keys):
            self._cache.expire_if(key, condition[self._rows(i, len(condition))].any())

    def _rows(self, branch: int, batch: int) -> slice:
        return slice(branch * batch // len(self._keys), (branch + 1) * batch // len(self._keys))


class Glance(LayerMemory):
    """Loads what is remembered, and leaves it as it is."""

    def store(self, *tensors: torch.Tensor) -> None:
        pass

    def forget_if(self, condition: torch.Tensor) -> None:
        pass


class StaticPlans:
    """What depends on nothing but layout, budget and device: made once in a run."""

    def __init__(self) -> None:
        self._plans: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key not in self._plans:
                self._plans[key] = make()
            return self._plans[key]

    def clear(self) -> None:
        with self._lock:
            self._plans.clear()
