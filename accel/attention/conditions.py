"""Questions whose answers are still being computed on a device, read once per forward."""

from __future__ import annotations

from collections.abc import Hashable

import torch

from .scalars import Scalars


class Conditions:
    """Bool scalars by key; one read answers all of them."""

    def __init__(self) -> None:
        self._keys: list[Hashable] = []
        self._answers = Scalars(1)

    def ask(self, key: Hashable, condition: torch.Tensor) -> None:
        """Never waits."""
        self._answers.add([condition])
        self._keys.append(key)

    def read(self) -> list[Hashable]:
        """The keys whose conditions are true; then none is pending any more. Waits for the device, and needs none of
        its memory."""
        keys, answers = self._keys, self._answers
        self._keys, self._answers = [], Scalars(1)
        return [key for key, (answer,) in zip(keys, answers.read(), strict=True) if answer]
