"""Attention patterns side by side on the same tensors: error at equal density, with a tail and without."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.call import AttentionCall
from dit_accel.accel.attention.layout import spread
from dit_accel.accel.attention.memory import LayerMemory, StaticPlans, TensorCache
from dit_accel.accel.attention.plan import SparsePlan
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.planners.select import make_tail
from dit_accel.accel.bench.case import relative_error
from dit_accel.accel.bench.density import bisect, plan_at
from dit_accel.accel.bench.inputs import Inputs
from dit_accel.kernels.attention_configs import QUERY_TILE
from dit_accel.kernels.gather import CHUNK, TALL

ROWS = 128
SOL_BLOCK = 64
SOL_HEAD_DIM = 128


class Source(NamedTuple):
    """A pattern with a token order."""

    pattern: str
    token_order: str = "auto"

    @property
    def name(self) -> str:
        return self.pattern if self.token_order == "auto" else f"{self.pattern} {self.token_order}"


SOURCES = tuple(
    Source(name, order)
    for name, pattern in PATTERNS.items()
    for order in (("cube", "raster", "morton") if pattern.token_order else ("auto",))
)


def judge(
    inputs: Inputs, densities: Sequence[float], sources: Sequence[Source] = SOURCES, *, device: str, backend: str
) -> list[dict[str, Any]]:
    """One row for each source and density, without a tail and with one: relative L2 error of the attention output
    against fp32 dense attention, density, the part of the map that the kernel multiplies, and the attention mass that
    the kept blocks really hold.

    Every pattern is brought to the density of the call as a whole (its heads and rows may differ): static patterns by
    max_density, the others by top_p. A row is left out where a pattern cannot go as low.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (x.to(device, dtype) for x in inputs[:3])
    scale = q.shape[-1] ** -0.5
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=scale)
    rows = []
    for source in sources:
        static = StaticPlans()
        for density in densities:

            def make_call(token_order=source.token_order, static=static):
                memory = LayerMemory(TensorCache(), ("bench",), "bench")
                return AttentionCall(q, k, v, inputs.layout, scale, backend, memory, static, token_order)

            plan = plan_at(make_call, source.pattern, density)
            if plan is None:
                continue
            tail = plan.tail or make_tail(make_call(), plan.keys)
            mass = kept_mass(q, k, plan, scale)
            for with_tail in (False, True):
                variant = replace(plan, tail=tail if with_tail else None)
                out = executor.execute(q, k, v, variant, scale=scale, backend=backend)
                rows.append(
                    {
                        "source": source.name,
                        "asked_density": density,
                        "tail": with_tail,
                        "density": plan.density().item(),
                        "products": multiplied(plan),
                        "mass": mass,
                        "error": relative_error(out, exact),
                    }
                )
    return rows


def kept_mass(q: Tensor, k: Tensor, plan: SparsePlan, scale: float, rows: int = ROWS) -> float:
    """Share of the true attention mass that the kept blocks hold, 0..1: mean over heads and `rows` queries spread
    over the sequence."""
    chosen = spread(q.shape[2], min(rows, q.shape[2]), q.device)
    weights = (q[:, :, chosen].float() @ k.float().transpose(2, 3) * scale).softmax(-1)
    query_block = plan.queries.block_of_token()[:, :, chosen, None]
    key_block = plan.keys.block_of_token()[:, :, None]
    kept = plan.keep.gather(2, query_block.expand(-1, -1, -1, plan.keep.shape[3]))
    return weights.where(kept.gather(3, key_block.expand(-1, -1, len(chosen), -1)), 0).sum(-1).mean().item()


def multiplied(plan: SparsePlan) -> float:
    """Part of the map whose products the attention kernel makes, with tiles of 128 queries and the chunks of keys that
    it would read on Hopper: more than the density, where blocks do not fill them. 0..1 and more."""
    chunk = CHUNK if plan.keys.tall_chunks is None else TALL
    queries, keys = plan.queries.sizes(), plan.keys.sizes()
    rows, columns = (-(-sizes // tile) * tile for sizes, tile in ((queries, QUERY_TILE), (keys, chunk)))
    products = torch.einsum("bhq,bhqk,bhk->bh", rows.float(), plan.keep.float(), columns.float())
    return (products / (queries.sum(-1) * keys.sum(-1))).mean().item()


def sol_attn_problem(head_dim: int) -> str | None:
    """Why Sol-Attn of comfy-kitchen cannot be measured here, or None."""
    if head_dim != SOL_HEAD_DIM:
        return f"it takes head dim {SOL_HEAD_DIM}, the captures have {head_dim}"
    if importlib.util.find_spec("comfy_kitchen") is None:
        return "comfy-kitchen is not installed"
    import comfy_kitchen

    if not hasattr(comfy_kitchen, "sol_attn"):
        return f"comfy-kitchen {importlib.metadata.version('comfy-kitchen')} has no sol_attn (0.2.40 has)"
    return None


def judge_sol_attn(inputs: Inputs, densities: Sequence[float], *, device: str) -> list[dict[str, Any]]:
    """Rows as of `judge` for comfy_kitchen.sol_attn, in the model's own (raster) order, head by head.

    Its tail is part of it. Its dial tau is set to reach the density, which follows from its published rule (arXiv
    2607.24027): the operation does not tell. Needs no sol_attn_problem().
    """
    import comfy_kitchen

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (x.to(device, dtype) for x in inputs[:3])
    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    rows = []
    for density in densities:
        tau = sol_tau(q, k, density)
        if tau is None:
            continue
        for tail in (False, True):
            # One head at a time: the reference that runs without a GPU holds a square of scores.
            parts = [
                comfy_kitchen.sol_attn(*(x[:, h : h + 1].transpose(1, 2) for x in (q, k, v)), tau=tau, tail=tail)
                for h in range(q.shape[1])
            ]
            out = torch.cat([part.transpose(1, 2) for part in parts], dim=1)
            row = {"source": "sol_attn", "asked_density": density, "tail": tail, "products": None, "mass": None}
            rows.append(row | {"density": sol_density(q, k, tau), "error": relative_error(out, exact)})
    return rows


def sol_tau(q: Tensor, k: Tensor, density: float) -> float | None:
    """The lowest tau whose density does not exceed `density`, or None where blocks of 64 tokens cannot go as low."""
    # A higher tau keeps less, so the dial runs backwards.
    dial = bisect(lambda minus_tau: (minus_tau, sol_density(q, k, -minus_tau)), -8.0, 8.0, density)
    return None if dial is None else -dial


def sol_density(q: Tensor, k: Tensor, tau: float) -> float:
    """Exact fraction of the map under Sol-Attn's rule: 64-token blocks whose pooled score exceeds tau deviations of
    its row, and the diagonal with its neighbours."""
    tokens = q.shape[2]
    count = -(-tokens // SOL_BLOCK)
    pad = count * SOL_BLOCK - tokens
    sizes = torch.full((count,), float(SOL_BLOCK), device=q.device)
    sizes[-1] -= pad
    queries, keys = (
        torch.nn.functional.pad(x.float(), (0, 0, 0, pad)).unflatten(2, (count, SOL_BLOCK)).sum(3) / sizes[:, None]
        for x in (q, k)
    )
    keys = keys - keys.mean(2, keepdim=True)
    deviation = (queries.square() * keys.square().mean(2, keepdim=True)).sum(-1, keepdim=True).sqrt()
    exact = queries @ keys.transpose(2, 3) > tau * deviation
    block = torch.arange(count, device=q.device)
    exact |= (block[:, None] - block).abs() <= 1
    return ((exact * sizes).sum(-1) @ sizes / tokens**2).mean().item()
