"""Questions whose answers are still being computed on a device, read once per forward."""

from __future__ import annotations

from collections.abc import Hashable

import torch


class Conditions:
    """Bool scalars by key."""

    def __init__(self) -> None:
        self._pending: list[tuple[Hashable, torch.Tensor]] = []

    def ask(self, key: Hashable, condition: torch.Tensor) -> None:
        """Never waits."""
        self._pending.append((key, condition))

    def read(self) -> list[Hashable]:
        """The keys whose conditions are true; then none is pending any more. Waits for the devices, and needs none of
        their memory."""
        pending, self._pending = self._pending, []
        return [key for key, condition in pending if condition.item()]
