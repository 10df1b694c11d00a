"""Questions whose answers are still being computed on a device, read once per forward."""

from __future__ import annotations

from collections.abc import Hashable

import torch


class Conditions:
    """Bool scalars by key; one read for each device answers all of them."""

    def __init__(self) -> None:
        self._pending: dict[torch.device, list[tuple[Hashable, torch.Tensor]]] = {}

    def ask(self, key: Hashable, condition: torch.Tensor) -> None:
        """Never waits."""
        self._pending.setdefault(condition.device, []).append((key, condition))

    def read(self) -> list[Hashable]:
        """The keys whose conditions are true; then none is pending any more. Waits for the devices."""
        pending, self._pending = self._pending, {}
        true = []
        for pairs in pending.values():
            answers = torch.stack([condition for _, condition in pairs]).tolist()
            true += [key for (key, _), answer in zip(pairs, answers, strict=True) if answer]
        return true
