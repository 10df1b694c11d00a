"""One forward, as every attention call of it finds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...attention.account.forward_statistics import ForwardStatistics
from ...attention.layout import TokenLayout
from ...attention.run import Run
from ..families import Family

FORWARD_KEY = "dit_accel_forward"


@dataclass
class ForwardState:
    """One forward, as every attention call of it finds it in transformer_options.

    branches: one id per equal part of the batch, none if the parts are unknown. previous: the override that stood
    in our place before. dense_reason: why what remains of the forward is dense; set when a call failed.
    """

    run: Run
    model: Any
    family: Family
    layout: TokenLayout
    branches: Sequence[Hashable]
    previous: Callable | None
    statistics: ForwardStatistics
    dense_reason: str | None = None
    _seen: Counter = field(default_factory=Counter)

    def __deepcopy__(self, memo) -> ForwardState:
        """It travels in model options, which other nodes copy, and must not take the model along."""
        return self

    def layer(self, options: Mapping[str, Any]) -> tuple[int, int]:
        """Identity of this video self-attention call: the number of its block and which of that block's calls it is.
        Where the model gives no number, it is the call's place among all of the forward."""
        number = self.family.block(self.model, options)
        if number is None:
            number = self._seen.total()
        self._seen[number] += 1
        return number, self._seen[number]
