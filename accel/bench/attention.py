"""Sparse attention beside dense attention: times, density, and the error of the very output that was timed."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..attention import executor
from ..attention.budget import Budget
from ..attention.call import AttentionCall
from ..attention.planners import PATTERNS
from ..attention.state import LayerMemory, StaticPlans, TensorCache
from ..attention.statistics import Stopwatch
from .inputs import Inputs


def measure(inputs: Inputs, pattern: str, *, budget: Budget, repeats: int, device: str, backend: str) -> dict[str, Any]:
    """One row: `pattern` on `inputs`, in bf16 on a GPU and fp32 elsewhere.

    first_plan_ms is a run's first call, without a warm start; plan_ms the ones after it, which is what most
    calls pay. setup_ms is the very first call of everything: compiling, allocating. Times are medians of
    `repeats`; errors are relative L2 against dense attention in fp32.
    """
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    q, k, v = (x.to(device, dtype) for x in inputs[:3])
    scale = q.shape[-1] ** -0.5
    layout = inputs.layout
    cache, static = TensorCache(), StaticPlans()
    call = AttentionCall(q, k, v, layout, scale, backend, LayerMemory(cache, ("bench",), pattern), static)

    def make_plan():
        return PATTERNS[pattern].plan(call, budget)

    def make_first_plan():
        cache.clear()
        static.clear()
        return make_plan()

    def dense():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

    def sparse():
        return executor.execute(q, k, v, plan, scale=scale, backend=backend)

    plan, setup = _timed(make_plan, q.device)
    setup += sum(_timed(step, q.device)[1] for step in (sparse, dense))
    _, first_plan_ms = _median(make_first_plan, repeats, q.device)
    plan, plan_ms = _median(make_plan, repeats, q.device)
    out, kernel_ms = _median(sparse, repeats, q.device)
    dense_out, dense_ms = _median(dense, repeats, q.device)

    exact = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=scale)
    return {
        "tokens": layout.total,
        "grid": list(layout.grid),
        "heads": q.shape[1],
        "head_dim": q.shape[-1],
        "dtype": str(dtype).removeprefix("torch."),
        "pattern": pattern,
        "top_p": budget.top_p,
        "floor": budget.floor,
        "max_density": budget.max_density,
        "repeats": repeats,
        "backend": backend,
        "query_blocks": plan.queries.blocks,
        "key_blocks": plan.keys.blocks,
        "density": plan.density().item(),
        "error": relative_error(out, exact),
        "setup_ms": setup,
        "first_plan_ms": first_plan_ms,
        "plan_ms": plan_ms,
        "kernel_ms": kernel_ms,
        "dense_ms": dense_ms,
        "dense_error": relative_error(dense_out, exact),
        "inputs": inputs.source,
        "inputs_sha256": inputs.sha256,
    }


def relative_error(out: Tensor, exact: Tensor) -> float:
    """L2 norm of the difference over that of the fp32 tensor `exact`."""
    return ((out.float() - exact).norm() / exact.norm()).item()


def _timed(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The function's result and its milliseconds, the device's work included."""
    watch = Stopwatch(device)
    result = function()
    watch.mark()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return result, watch.laps()[0] * 1000


def _median(function: Callable[[], Any], repeats: int, device: torch.device) -> tuple[Any, float]:
    """The last result and the median of the milliseconds."""
    times = []
    for _ in range(repeats):
        result, milliseconds = _timed(function, device)
        times.append(milliseconds)
    return result, statistics.median(times)
