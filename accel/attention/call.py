"""One self-attention call, as a planner sees it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .layout import TokenLayout
from .state import LayerMemory, StaticPlans


@dataclass(frozen=True)
class AttentionCall:
    """q, k, v: [B, H, N, D] after norm and rotary positions, N = layout.total; scale multiplies the scores.

    backend runs the operations of the plan and of planning. memory: what this layer remembers of the run's earlier
    steps. static: what all calls of the run share. token_order: raster, cube, morton, or auto for the pattern's own.
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
