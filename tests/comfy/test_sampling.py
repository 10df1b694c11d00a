"""Samplers, guidance and schedules, in process through ComfyUI's own sampling code."""

import logging

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.run_summary import parse_line
from dit_accel.accel.attention.memory import TensorCache
from dit_accel.tests.support.closeness import NETWORK, assert_close

LAYERS = 2  # of the model


def test_split_and_joint_guidance_agree(tiny, case, half, monkeypatch):
    joint = tiny.sample(half, case)
    monkeypatch.setattr(type(half), "get_free_memory", lambda *_: 0)
    split = tiny.sample(half, case)
    first, second = tiny.history(half)
    assert (first.forwards, second.forwards) == (2, 4)
    assert second.sparse_calls == 2 * first.sparse_calls
    assert_close(joint, split, units=NETWORK)


def test_guidance_off_is_one_branch(tiny, case, half):
    tiny.sample(half, case, cfg=1.0)
    (run,) = tiny.history(half)
    assert run.sparse_calls == 2 * LAYERS


def test_branches_do_not_share_state(tiny, case, half, monkeypatch):
    """With guidance that ignores the negative branch, its content leaves no trace, though it runs in between."""
    monkeypatch.setattr(type(half), "get_free_memory", lambda *_: 0)  # one branch per forward
    clone = half.clone()
    clone.set_model_sampler_cfg_function(lambda args: args["cond"], disable_cfg1_optimization=True)
    results = [tiny.sample(clone, case, steps=3, negative=case.conditioning(seed)) for seed in (3, 4)]
    assert torch.equal(*results)
    assert [run.forwards for run in tiny.history(half)] == [6, 6]


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_2", "dpmpp_2m_sde", "euler_ancestral"])
def test_samplers_that_repeat_or_invent_sigmas(tiny, case, model, sampler):
    sparse = tiny.sparse(model)
    both = (tiny.sample(each, case, sampler=sampler) for each in (sparse, model))
    assert_close(*both, units=NETWORK)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == LAYERS * run.forwards
    assert run.forwards >= 2


def test_dense_window_counts_forwards(tiny, case, model):
    sparse = tiny.sparse(model, dense_first=0.3, dense_last=0.3)
    tiny.sample(sparse, case, steps=10)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == 4 * LAYERS
    assert run.dense[reasons.OUTSIDE_WINDOW] == 6 * LAYERS


def test_sliced_schedule_sees_its_own_part(tiny, case, model):
    """As KSamplerAdvanced does it: the second half of a schedule never meets the dense start."""
    sparse = tiny.sparse(model, dense_first=0.3)
    tiny.sample(sparse, case, steps=10, start_step=5, last_step=10, force_full_denoise=True)
    (run,) = tiny.history(sparse)
    assert reasons.OUTSIDE_WINDOW not in run.dense
    assert run.sparse_calls == 5 * LAYERS


def test_auto_budget_is_chosen_from_the_whole_schedule(tiny, case, model, comfy):
    from dit_accel.accel.attention.run import Settings
    from dit_accel.accel.comfy.sparse import patch

    sparse = patch.install(model, Settings(fallback="reference"))
    tiny.sample(sparse, case, steps=20, start_step=0, last_step=2)
    tiny.sample(sparse, case, steps=4, last_step=2)
    assert [run.budget for run in tiny.history(sparse)] == ["auto (faithful)", "auto (few_step)"]


def test_per_token_timesteps(tiny):
    """Wan 2.2 5B with a kept first frame: every token has a time of its own."""
    case = next(case for case in tiny.CASES if case.name == "wan ti2v 5b")
    model = case.model()
    mask = torch.ones(1, 1, *case.latent[2:])
    mask[:, :, 0] = 0
    sparse = tiny.sparse(model, dense_first=0.5)
    results = [tiny.sample(m, case, steps=4, noise_mask=mask) for m in (sparse, model)]
    assert_close(*results, units=NETWORK)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == run.dense[reasons.OUTSIDE_WINDOW] == 2 * LAYERS


def test_dense_blocks(tiny, case, model):
    sparse = tiny.sparse(model, dense_blocks=frozenset({1}))
    tiny.sample(sparse, case)
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == run.dense[reasons.DENSE_BLOCK] == run.forwards


def test_dense_blocks_count_single_after_double(tiny):
    case = next(case for case in tiny.CASES if case.name == "hunyuan 1")
    sparse = tiny.sparse(case.model(), dense_blocks=frozenset({2}))
    tiny.sample(sparse, case, steps=1)
    (run,) = tiny.history(sparse)
    # One double and two single blocks: number 2 is the last.
    assert (run.sparse_calls, run.dense[reasons.DENSE_BLOCK]) == (2 * run.forwards, run.forwards)


def test_short_clip_is_bit_identical(tiny, case, model):
    sparse = tiny.sparse(model, min_tokens=10**6)
    assert torch.equal(tiny.sample(sparse, case), tiny.sample(model, case))
    (run,) = tiny.history(sparse)
    assert run.dense[reasons.TOO_SHORT] == LAYERS * run.forwards


def test_context_windows_share_one_warm_start(tiny, case, model, monkeypatch):
    import comfy.context_windows as windows

    seen = []
    put = TensorCache.put
    monkeypatch.setattr(TensorCache, "put", lambda self, key, entry: (seen.append(key), put(self, key, entry))[1])
    sparse = tiny.sparse(model)
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule(windows.ContextSchedules.STATIC_STANDARD),
        fuse_method=windows.get_matching_fuse_method(windows.ContextFuseMethods.PYRAMID),
        context_length=3,
        context_overlap=1,
        context_stride=1,
        closed_loop=False,
        dim=2,
        causal_window_fix=False,  # windows of one shape
    )
    results = []
    for clone in (model.clone(), sparse):
        clone.model_options["context_handler"] = handler
        results.append(tiny.sample(clone, case, cfg=1.0))
    assert_close(*results, units=NETWORK)
    (run,) = tiny.history(sparse)
    assert run.forwards > 2, "no windows were evaluated"
    assert run.sparse_calls == LAYERS * run.forwards
    assert len(set(seen)) == LAYERS


def test_global_random_state_is_untouched(tiny, case, half):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tiny.sample(half, case)
    assert torch.equal(before, torch.get_rng_state())


def test_the_log_has_one_line_per_run(tiny, case, half, caplog):
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        tiny.sample(half, case)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dit_accel"]
    parsed = parse_line(line)
    assert parsed["sparse"] == 2 * LAYERS
    assert 0.05 < parsed["density"] < 0.9
    assert parsed["backend"] == "torch"
