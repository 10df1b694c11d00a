"""One attention call by hand, as the override makes it."""

from __future__ import annotations

import torch

from dit_accel.accel.attention.call import AttentionCall
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.memory import LayerMemory, StaticPlans, TensorCache


def make_call(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    *,
    cache: TensorCache | None = None,
    static: StaticPlans | None = None,
    branches: tuple[str, ...] = ("a",),
    backend: str = "reference",
    token_order: str = "auto",
) -> AttentionCall:
    """A call of its own run, or of the run whose `cache` and `static` are given."""
    memory = LayerMemory(TensorCache() if cache is None else cache, branches, "layer")
    shared = StaticPlans() if static is None else static
    return AttentionCall(q, k, v, layout, q.shape[-1] ** -0.5, backend, memory, shared, token_order)
