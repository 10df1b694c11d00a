"""Planner and executor together on a GPU: no host sync, bounded memory, the same answer as the reference."""

import pytest
import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.memory import TensorCache
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.forwards import evaluate, make_run, outside_comfyui

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
by_content = pytest.mark.parametrize("pattern", ["svg2", "tree"])


def tokens(batch: int, layout: TokenLayout, heads: int, dim: int, seed: int) -> torch.Tensor:
    """bf16 [B, H, N, D] as ComfyUI hands it over, around a few centres so that clusters exist."""
    generator = torch.Generator("cuda").manual_seed(seed)
    centres = torch.randn(64, heads, dim, generator=generator, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(0, 64, (batch, layout.total), generator=generator, device="cuda")
    noise = torch.randn(batch, layout.total, heads, dim, generator=generator, device="cuda", dtype=torch.bfloat16)
    return (2 * centres[labels] + noise).transpose(1, 2)


def call(pattern, q, k, v, layout, cache, backend="triton"):
    scale = q.shape[-1] ** -0.5
    budget = Budget(top_p=0.7, floor=0.0)
    plan = PATTERNS[pattern].plan(make_call(q, k, v, layout, cache=cache, backend=backend), budget.spending())
    return plan, executor.execute(q, k, v, plan, scale=scale, backend=backend)


@by_content
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("batch", [1, 2])
def test_same_plan_same_answer(pattern, batch, dim):
    layout = TokenLayout((7, 30, 31), prefix=77, suffix=5)
    q, k, v = (tokens(batch, layout, 3, dim, seed) for seed in (0, 0, 2))
    plan, out = call(pattern, q, k, v, layout, TensorCache())
    scale = dim**-0.5
    exact = executor.execute(q.float(), k.float(), v.float(), plan, scale=scale, backend="reference")
    rounded = executor.execute(q, k, v, plan, scale=scale, backend="reference")
    error = (out.float() - exact).norm()
    assert error < 2 * (rounded.float() - exact).norm() + 2e-3 * exact.norm()
    assert 0.02 < plan.density().item() < 0.9


@by_content
def test_no_host_sync(monkeypatch, pattern):
    """The very call that a user's model makes, statistics included."""
    outside_comfyui(monkeypatch)
    layout, run = TokenLayout((9, 40, 40), prefix=100), make_run(pattern=pattern)
    q, k, v = (tokens(2, layout, 4, 128, seed).transpose(1, 2).flatten(2) for seed in range(3))
    evaluate(run, layout, q, k, v, heads=4)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        forward, out = evaluate(run, layout, q, k, v, heads=4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert forward.statistics.sparse == {"triton": 1}
    assert out.shape == q.shape
    run.add(forward.statistics)
    summary = run.close()
    assert 0.02 < summary.density < 0.95
    assert 0 < summary.plan_share < 1


@by_content
def test_peak_memory_at_720p(pattern):
    layout = TokenLayout((21, 45, 80))
    q, k, v = (tokens(1, layout, 40, 128, seed) for seed in range(3))
    cache = TensorCache()
    call(pattern, q, k, v, layout, cache)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call(pattern, q, k, v, layout, cache)
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 2 * 3 * q.numel() * q.element_size()


@by_content
def test_runs_are_equal(pattern):
    layout = TokenLayout((9, 40, 40))
    q, k, v = (tokens(1, layout, 4, 128, seed) for seed in range(3))
    outs = [call(pattern, q, k, v, layout, TensorCache())[1] for _ in range(2)]
    assert torch.equal(*outs)
