"""Several sampling runs in one graph: two experts that share a schedule, stages of growing size on one model."""

import dataclasses

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.comfy.sparse import patch
from dit_accel.tests.support.closeness import NETWORK, assert_close


@pytest.fixture(scope="module")
def experts(tiny, case):
    with torch.inference_mode():
        models = [case.model(), case.model()]
        tiny.initialise(models[1].model.diffusion_model, seed=1)
    return models


def in_turn(tiny, case, models, steps=4):
    """The latent after KSamplerAdvanced has run each model over its equal share of the schedule."""
    from nodes import KSamplerAdvanced

    latent = {"samples": tiny.rand(*case.latent, seed=1)}
    share = steps // len(models)
    for i, model in enumerate(models):
        (latent,) = KSamplerAdvanced().sample(
            model,
            "enable" if i == 0 else "disable",
            0,
            steps,
            4.0,
            "euler",
            "simple",
            case.conditioning(2),
            case.conditioning(3),
            latent,
            start_at_step=i * share,
            end_at_step=(i + 1) * share,
            return_with_leftover_noise="enable" if i + 1 < len(models) else "disable",
        )
    return latent["samples"]


def test_two_experts_under_one_budget(tiny, case, experts):
    settings = Settings(fallback="reference", budget=tiny.budget(dense_first=0.2))
    both = [patch.install(model, settings) for model in experts]
    assert_close(in_turn(tiny, case, both), in_turn(tiny, case, experts), units=NETWORK)
    (high,), (low,) = (tiny.history(model) for model in both)
    assert (high.sparse_calls, high.dense[reasons.OUTSIDE_WINDOW]) == (case.calls, case.calls)
    assert (low.sparse_calls, low.dense.get(reasons.OUTSIDE_WINDOW)) == (2 * case.calls, None)


def test_experts_do_not_share_state(tiny, case, experts):
    """What one expert makes is the same whether the other ran in between or not."""
    both = [tiny.sparse(model, top_p=0.5, floor=0.0) for model in experts]
    first = in_turn(tiny, case, both)
    assert torch.equal(first, in_turn(tiny, case, both))
    alone = [tiny.sparse(model, top_p=0.5, floor=0.0) for model in experts]
    assert torch.equal(first, in_turn(tiny, case, alone))
    for model in both:
        once, again = tiny.history(model)
        assert once.sparse_calls == again.sparse_calls == 2 * case.calls
        assert once.density == again.density < 0.95


def test_one_expert_alone_is_sparse(tiny, case, experts):
    high = tiny.sparse(experts[0], top_p=0.5, floor=0.0)
    in_turn(tiny, case, [high, experts[1]])
    (run,) = tiny.history(high)
    assert run.sparse_calls == 2 * case.calls


@pytest.mark.parametrize(("name", "pattern"), [("wan t2v", "svg2"), ("wan t2v", "radial"), ("ltx 2", "svg2")])
def test_a_second_stage_of_twice_the_size(tiny, name, pattern):
    """On one patched model: nothing of the first stage is left in the second, each has its own summary."""
    case = next(case for case in tiny.CASES if case.name == name)
    *start, h, w = case.latent
    large = dataclasses.replace(case, latent=(*start, 2 * h, 2 * w))
    model = case.model()
    half = {"pattern": pattern, "top_p": 0.5, "floor": 0.0}
    staged = tiny.sparse(model, **half)
    tiny.sample(staged, case)
    second = tiny.sample(staged, large, cfg=1.0, denoise=0.5, steps=1)
    assert torch.equal(second, tiny.sample(tiny.sparse(model, **half), large, cfg=1.0, denoise=0.5, steps=1))
    small, upscaled = tiny.history(staged)
    assert (small.sparse_calls, upscaled.sparse_calls) == (2 * case.calls, case.calls)
    assert small.density < 0.95 and upscaled.density < 0.95
    assert small.notes == upscaled.notes == ()
