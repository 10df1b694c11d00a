"""Recording a run of every family, and what becomes of it: profiles and reports."""

import pytest
import torch

from dit_accel.accel.attention import reasons

TARGET = 0.3  # random weights are hard on sparse attention


@pytest.fixture
def named(tiny):
    return {case.name: case for case in tiny.CASES}


@pytest.fixture
def patch(comfy):
    from dit_accel.accel.comfy.sparse import patch

    return patch


def recorded(patch, model):
    return patch.record(model, patch.ATTENTION)


def families(tiny):
    return [case for case in tiny.CASES if case.calls]


@pytest.mark.thorough
def test_every_family_is_recorded_and_its_result_does_not_change(tiny, patch):
    for case in families(tiny):
        model = case.model()
        watched = recorded(patch, model)
        assert torch.equal(tiny.sample(watched, case, steps=4), tiny.sample(model, case, steps=4)), case.name
        (run,) = tiny.history(watched)
        recording = run.recording
        assert len(recording.levels) == 3, case.name
        # VACE's blocks of two kinds share numbers.
        assert recording.timing.calls >= len(recording.layers) > 0, case.name
        assert recording.timing.dense_step > recording.timing.dense_call > 0
        assert run.dense[reasons.NOT_ASKED] == case.calls * run.forwards
        for level in recording.levels:
            assert level.density.shape == level.error.shape == (*level.norm.shape, len(recording.top_p))
            assert (level.norm > 0).all()
            assert torch.isfinite(level.error).all()
            # More mass, more blocks.
            assert (level.density.diff(dim=-1) >= 0).all()


@pytest.mark.parametrize("order", ["before", "after"])
def test_a_profile_holds_in_a_sparse_run_whichever_node_came_first(tiny, case, model, patch, order):
    from dit_accel.accel.attention.run import Settings
    from dit_accel.accel.comfy.sparse.model_profile import profile_of

    settings = Settings(fallback="reference", budget=tiny.budget(top_p=0.6, floor=0.0, dense_first=0.3))
    if order == "before":
        both = patch.install(recorded(patch, model), settings)
    else:
        both = recorded(patch, patch.install(model, settings))
    out = tiny.sample(both, case, steps=4)
    (run,) = tiny.history(both)
    assert run.sparse_calls and run.recording is not None
    assert len(run.recording.timing.sparse) == run.sparse_calls

    profile = profile_of(out, both, "error", TARGET).profile
    assert profile.met and profile.layers == (0, 1)
    budget = tiny.budget(dense_first=0.0)
    from dataclasses import replace

    held = patch.install(model, Settings(fallback="reference", budget=replace(budget, profile=profile)))
    tiny.sample(held, case, steps=4)
    (run,) = tiny.history(held)
    assert run.profiled and run.sparse_calls
    assert "with a profile" in run.line()


def test_a_profile_of_another_model_is_refused(tiny, named, model, case, patch):
    from dataclasses import replace

    from dit_accel.accel.attention.run import Settings
    from dit_accel.accel.comfy.sparse.model_profile import profile_of

    watched = recorded(patch, model)
    profile = profile_of(tiny.sample(watched, case, steps=4), watched, "error", TARGET).profile
    other = named["hunyuan 1"]
    held = patch.install(other.model(), Settings(fallback="reference", budget=replace(tiny.budget(), profile=profile)))
    found = (
        r"profile: measured on WanModel with 2 attention layers of \d+ heads and svg2, found HunyuanVideo with 3 layers"
    )
    with pytest.raises(ValueError, match=found):
        tiny.sample(held, other)


def test_linear_layers_are_watched(tiny, case, model, patch):
    watched = patch.record(model, patch.LINEAR)
    assert torch.equal(tiny.sample(watched, case, steps=4), tiny.sample(model, case, steps=4))
    linears = patch.patch_of(watched).linears
    network = model.model.diffusion_model
    names = {name for name, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    assert {name for name in names if name.startswith("blocks")} <= linears.keys() <= names
    for name, found in linears.items():
        assert found.largest.shape == (network.get_submodule(name).in_features,)
        assert (found.largest**2 >= found.mean_square * 0.999).all() and found.rows > 0
    # The hooks are gone.
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_run_of_one_step_has_one_level(tiny, named, patch):
    case = named["wan t2v"]
    watched = recorded(patch, case.model())
    tiny.sample(watched, case, steps=1)
    (run,) = tiny.history(watched)
    assert len(run.recording.levels) == 1
