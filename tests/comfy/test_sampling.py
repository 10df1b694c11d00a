"""Samplers, guidance, schedules and failures, in process through ComfyUI's own sampling code."""

import gc
import logging
import subprocess

import pytest
import torch
import triton.runtime.errors

from dit_accel.accel.attention import executor, reasons
from dit_accel.accel.attention.state import ClusterCache
from dit_accel.accel.attention.statistics import parse_line
from dit_accel.accel.comfy import override
from dit_accel.kernels import registry

LAYERS = 2


@pytest.fixture(scope="module")
def case(tiny):
    return tiny.CASES[0]


@pytest.fixture(scope="module")
def model(case):
    with torch.inference_mode():
        return case.model()


@pytest.fixture
def half(tiny, model):
    """The model at half the attention mass."""
    return tiny.sparse(model, top_p=0.5, floor=0.0)


def test_split_and_joint_guidance_agree(tiny, case, half, monkeypatch):
    joint = tiny.sample(half, case)
    monkeypatch.setattr(type(half), "get_free_memory", lambda *_: 0)
    split = tiny.sample(half, case)
    first, second = tiny.history(half)
    assert (first.forwards, second.forwards) == (2, 4)
    assert second.sparse_calls == 2 * first.sparse_calls
    assert (joint - split).abs().max() < 1e-4


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
    difference = tiny.sample(sparse, case, sampler=sampler) - tiny.sample(model, case, sampler=sampler)
    assert difference.abs().max() < 1e-4
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
    from dit_accel.accel.comfy import patch

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
    assert (results[0] - results[1]).abs().max() < 1e-4
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


def test_without_a_gpu_dense_is_the_default_and_error_stops(tiny, case, model, monkeypatch):
    monkeypatch.setattr(registry, "choose", lambda *_, **__: (None, "no GPU"))
    dense = tiny.sparse(model, fallback="dense")
    assert torch.equal(tiny.sample(dense, case), tiny.sample(model, case))
    assert tiny.history(dense)[0].dense[f"{reasons.NO_KERNEL}: no GPU"] == LAYERS * 2
    with pytest.raises(RuntimeError, match=r"fallback is set to error.*no GPU"):
        tiny.sample(tiny.sparse(model, fallback="error"), case)


def test_context_windows_share_one_warm_start(tiny, case, model, monkeypatch):
    import comfy.context_windows as windows

    seen = []
    put = ClusterCache.put
    monkeypatch.setattr(ClusterCache, "put", lambda self, key, pair: (seen.append(key), put(self, key, pair))[1])
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
    assert (results[0] - results[1]).abs().max() < 1e-4
    (run,) = tiny.history(sparse)
    assert run.forwards > 2, "no windows were evaluated"
    assert run.sparse_calls == LAYERS * run.forwards
    assert len(set(seen)) == LAYERS


def test_global_random_state_is_untouched(tiny, case, half):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    tiny.sample(half, case)
    assert torch.equal(before, torch.get_rng_state())


def live_tensors() -> int:
    gc.collect()
    return sum(type(thing) is torch.Tensor for thing in gc.get_objects())


def test_runs_repeat_and_leave_no_tensor(tiny, case, half):
    first = tiny.sample(half, case)
    before = live_tensors()
    second = tiny.sample(half, case)
    assert torch.equal(first, second)
    del second
    assert live_tensors() == before


def test_wrappers_around_ours_see_the_options_they_had(tiny, case, model):
    from comfy.patcher_extension import WrappersMP

    seen = []

    def outer(executor, *args, **kwargs):
        guider = executor.class_obj
        seen.append(guider.model_options)
        out = executor(*args, **kwargs)
        seen.append(guider.model_options)
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, "outer", outer)
    sparse = tiny.sparse(clone)
    tiny.sample(sparse, case)
    assert seen[0] is seen[1]
    assert tiny.history(sparse)[0].sparse_calls > 0


@pytest.mark.parametrize("error", [RuntimeError("boom"), "interrupt"])
def test_a_run_that_dies_leaves_nothing_behind(tiny, case, half, monkeypatch, error):
    import comfy.model_management

    whole = tiny.sample(half, case)
    before = live_tensors()
    raised = comfy.model_management.InterruptProcessingException() if error == "interrupt" else error
    execute, calls = executor.execute, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise raised
        return execute(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(executor, "execute", fail)
        with pytest.raises(type(raised)):
            tiny.sample(half, case)
    assert len(calls) == 3
    raised.__traceback__ = None
    assert live_tensors() == before
    assert torch.equal(whole, tiny.sample(half, case))


@pytest.fixture
def failing(monkeypatch):
    """Makes the n-th executed call of a run raise; returns the number of attempts."""

    def install(error: Exception, at: int) -> list:
        execute, attempts = executor.execute, []

        def fail(*args, **kwargs):
            attempts.append(1)
            if len(attempts) == at:
                raise error
            return execute(*args, **kwargs)

        monkeypatch.setattr(executor, "execute", fail)
        return attempts

    yield install


def test_out_of_memory_makes_the_forward_dense_and_goes_on(tiny, case, half, monkeypatch, failing):
    whole = tiny.sample(half, case)
    clear, freed = ClusterCache.clear, []
    with monkeypatch.context() as patched:
        patched.setattr(ClusterCache, "clear", lambda self: (freed.append(len(self)), clear(self)))
        failing(torch.OutOfMemoryError("stand-in"), at=3)
        assert tiny.sample(half, case).isfinite().all()
    assert len(freed) == 2, "the state is freed before the dense call and at the end"
    assert freed[0] > 0
    run = tiny.history(half)[-1]
    assert run.dense[reasons.OUT_OF_MEMORY] == LAYERS
    assert run.sparse_calls == LAYERS
    assert torch.equal(whole, tiny.sample(half, case))


@pytest.mark.parametrize(
    "error",
    [
        triton.runtime.errors.OutOfResources(300000, 232448, "shared memory"),
        subprocess.CalledProcessError(1, "gcc"),
        ImportError("libcuda.so.1: cannot open shared object file"),
        RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_kernel_that_cannot_run_is_not_tried_again(tiny, case, model, monkeypatch, failing, error):
    def stand_in(*args, backend, **kwargs):
        attempts.append(backend)
        raise error

    attempts = []
    monkeypatch.setattr(registry, "choose", lambda *_, **__: ("triton", ""))
    monkeypatch.setitem(override.PLANNERS, "svg2", stand_in)
    sparse = tiny.sparse(model, fallback="dense")
    assert torch.equal(tiny.sample(sparse, case, steps=3), tiny.sample(model, case, steps=3))
    assert attempts == ["triton"]
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == 0
    assert sum(count for reason, count in run.dense.items() if type(error).__name__ in reason) == 3 * LAYERS
    with pytest.raises(type(error)):
        tiny.sample(tiny.sparse(model, fallback="error"), case)


def test_clones_with_other_budgets_are_apart(tiny, case, model):
    sparse, exact = tiny.sparse(model, top_p=0.3, floor=0.0), tiny.sparse(model)
    before = tiny.sample(sparse, case)
    tiny.sample(exact, case)
    assert torch.equal(before, tiny.sample(sparse, case))
    assert [run.density < 0.99 for run in tiny.history(sparse)] == [True, True]
    assert tiny.history(exact)[0].density == pytest.approx(1.0)


def test_applying_twice_replaces(tiny, case, model):
    twice = tiny.sparse(tiny.sparse(model, min_tokens=10**6))
    tiny.sample(twice, case)
    (run,) = tiny.history(twice)
    assert run.sparse_calls == LAYERS * run.forwards


class Sage:
    """A plain override as attention packs install it: it replaces what was there and calls its own function."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, func, *args, **kwargs):
        self.calls += 1
        return func(*args, **kwargs)


@pytest.mark.parametrize("after", [False, True])
def test_a_plain_override_serves_the_dense_calls(tiny, case, model, after):
    sage, clone = Sage(), model.clone()
    if after:
        clone = tiny.sparse(clone)
        clone.model_options["transformer_options"]["optimized_attention_override"] = sage
    else:
        clone.model_options["transformer_options"]["optimized_attention_override"] = sage
        clone = tiny.sparse(clone)
    tiny.sample(clone, case)
    (run,) = tiny.history(clone)
    assert run.sparse_calls == LAYERS * run.forwards
    assert sage.calls == run.dense_calls > 0


@pytest.mark.parametrize("mark", ["callback", "attribute"])
@pytest.mark.parametrize("after", [False, True])
def test_another_sparse_attention_owns_the_calls(tiny, case, model, after, mark, caplog):
    """Shaped like core's own node: wraps `previous` and re-installs itself on top before every step. Versions of it
    are known by the key of their callback or by an attribute of their override."""
    from comfy.patcher_extension import CallbacksMP

    depths, calls, installed = [], [], []

    def reinstall(patcher, timestep, model_options=None, *_):
        options = model_options["transformer_options"]
        current = options.get("optimized_attention_override")
        if current not in installed:

            def override(func, *args, **kwargs):
                calls.append(1)
                return func(*args, **kwargs) if current is None else current(func, *args, **kwargs)

            override.previous = current
            if mark == "attribute":
                override._block_sparse_attention_patch = "stand-in"
            installed.append(override)
            options["optimized_attention_override"] = override
        depth, link = 0, options["optimized_attention_override"]
        while link is not None:
            depth, link = depth + 1, getattr(link, "previous", None)
        depths.append(depth)

    def add_other(patcher):
        clone = patcher.clone()
        key = "block_sparse_attention" if mark == "callback" else "stand-in"
        clone.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, key, reinstall)
        return clone

    both = add_other(tiny.sparse(model)) if after else tiny.sparse(add_other(model))
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        tiny.sample(both, case, steps=10)
    assert len(depths) == 10
    assert set(depths) == {1}
    (run,) = tiny.history(both)
    assert run.sparse_calls == 0
    assert run.dense_calls == 10 * LAYERS
    assert len(calls) == 10 * 2 * LAYERS, "self- and cross-attention of every step"
    assert "BlockSparseAttention" in caplog.text


def test_a_wrapper_that_splits_the_batch(tiny, case, model):
    """Some packs run the branches of a batch one by one and hand on the ids of all of them."""

    def one_by_one(apply_model, args):
        rows = range(len(args["input"]))
        parts = [
            apply_model(
                args["input"][i : i + 1],
                args["timestep"][i : i + 1],
                **{
                    key: value[i : i + 1] if isinstance(value, torch.Tensor) else value
                    for key, value in args["c"].items()
                },
            )
            for i in rows
        ]
        return torch.cat(parts)

    sparse = tiny.sparse(model)
    sparse.set_model_unet_function_wrapper(one_by_one)
    assert (tiny.sample(sparse, case) - tiny.sample(model, case)).abs().max() < 1e-4
    assert tiny.history(sparse)[0].sparse_calls == 4 * LAYERS


@pytest.mark.parametrize("first", ["cache", "sparse"])
def test_easycache_skips_forwards_without_blame(tiny, case, model, first):
    from comfy_extras.nodes_easycache import EasyCacheNode

    def cached(patcher):
        return EasyCacheNode.execute(patcher, 100.0, 0.2, 0.9, False).result[0]

    both = tiny.sparse(cached(model)) if first == "cache" else cached(tiny.sparse(model))
    tiny.sample(both, case, steps=8, cfg=1.0)
    (run,) = tiny.history(both)
    assert run.sparse_calls == run.expected < 8 * LAYERS
    assert run.notes == ()


def test_conditioning_areas(tiny, case, model):
    """A condition on a part of the frame gives forwards of another size within one run."""
    sparse = tiny.sparse(model)
    positive = [*case.conditioning(2), [case.conditioning(5)[0][0], {"area": (5, 8, 8, 0, 2, 2), "strength": 1.0}]]
    results = [tiny.sample(m, case, positive=positive) for m in (sparse, model)]
    assert (results[0] - results[1]).abs().max() < 1e-4
    (run,) = tiny.history(sparse)
    assert run.sparse_calls == LAYERS * run.forwards
    assert run.forwards > 2


@pytest.mark.parametrize("sparse_first", [True, False])
def test_the_second_model_of_a_guider(tiny, case, model, sparse_first, caplog):
    """Core runs both models under the first one's options: the node acts there on both, or says that it does not."""
    import comfy.samplers
    from comfy_extras.nodes_custom_sampler import Guider_DualModel

    sparse = tiny.sparse(model)
    guider = Guider_DualModel(sparse, model) if sparse_first else Guider_DualModel(model, sparse)
    guider.set_conds(case.conditioning(2), case.conditioning(3))
    guider.set_cfg(4.0)
    sampler, noise = comfy.samplers.sampler_object("euler"), tiny.rand(*case.latent)
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        guider.sample(noise, torch.zeros(case.latent), sampler, torch.tensor([1.0, 0.5]), disable_pbar=True)
    assert [run.sparse_calls for run in tiny.history(sparse)] == ([2 * LAYERS] if sparse_first else [])
    assert ("no effect on the second model" in caplog.text) is not sparse_first


def test_the_log_has_one_line_per_run(tiny, case, half, caplog):
    with caplog.at_level(logging.INFO, logger="dit_accel"):
        tiny.sample(half, case)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "dit_accel"]
    parsed = parse_line(line)
    assert parsed["sparse"] == 2 * LAYERS
    assert 0.05 < parsed["density"] < 0.9
    assert parsed["backend"] == "reference"


def test_a_model_used_without_a_sampler_runs_dense(tiny, case, half):
    """Other nodes may call apply_model themselves: without a run nothing is patched."""
    base = half.model
    x = tiny.rand(*case.latent)
    options = {"wrappers": half.wrappers}
    context = tiny.rand(1, case.text, tiny.TEXT)
    plain = base.apply_model(x, torch.tensor([0.5]), c_crossattn=context)
    assert torch.equal(
        plain, base.apply_model(x, torch.tensor([0.5]), c_crossattn=context, transformer_options=options)
    )
