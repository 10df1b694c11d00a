"""One self-attention call, as a planner sees it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .layout import TokenLayout
from .memory import LayerMemory, StaticPlans


@dataclass(frozen=True)
class AttentionCall:
    """q, k, v: [B, H, N, D] after norm and rotary positions, N = layout.total; scale multiplies the scores.

    backend runs the operations of the plan and of planning. memory: what this layer remembers of the run's earlier
    steps. static: what all calls of the run share. token_order: raster, cube, morton, or auto for the pattern's own.
    shared: what several plans of this call share, None if only one is made.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    scale: float
    backend: str
    memory: LayerMemory
    static: StaticPlans
    token_order: str = "auto"
    shared: dict[Hashable, Any] | None = None

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What several plans of this call, made with different budgets, share, if it is meant for several."""
        if self.shared is None:
            return make()
        if key not in self.shared:
            self.shared[key] = make()
        return self.shared[key]
