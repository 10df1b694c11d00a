"""Other nodes on the same model: overrides, wrappers, caches, guiders, clones."""

import logging

import pytest
import torch

from dit_accel.tests.support.closeness import NETWORK, assert_close

LAYERS = 2  # of the model


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
    assert_close(tiny.sample(sparse, case), tiny.sample(model, case), units=NETWORK)
    assert tiny.history(sparse)[0].sparse_calls == 4 * LAYERS


@pytest.mark.parametrize("first", ["cache", "sparse"])
@pytest.mark.parametrize("node", ["EasyCacheNode", "LazyCacheNode"])
def test_a_cache_skips_forwards_without_blame(tiny, case, model, node, first):
    import comfy_extras.nodes_easycache as nodes

    def cached(patcher):
        return getattr(nodes, node).execute(patcher, 100.0, 0.2, 0.9, False).result[0]

    both = tiny.sparse(cached(model)) if first == "cache" else cached(tiny.sparse(model))
    cached_alone = tiny.sample(cached(model), case, steps=8, cfg=1.0)
    assert_close(tiny.sample(both, case, steps=8, cfg=1.0), cached_alone, units=NETWORK)
    (run,) = tiny.history(both)
    assert run.sparse_calls == run.expected < 8 * LAYERS
    assert run.notes == ()


def test_conditioning_areas(tiny, case, model):
    """A condition on a part of the frame gives forwards of another size within one run."""
    sparse = tiny.sparse(model)
    positive = [*case.conditioning(2), [case.conditioning(5)[0][0], {"area": (5, 8, 8, 0, 2, 2), "strength": 1.0}]]
    results = [tiny.sample(m, case, positive=positive) for m in (sparse, model)]
    assert_close(*results, units=NETWORK)
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
