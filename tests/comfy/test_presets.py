"""Every preset, from the budget node to the sampled run: what is sparse, when, and by which numbers."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.profiles.profile import Profile

LAYERS = 2  # of the model; presets keep block 0 dense
# Sampling steps, and how many of them each preset keeps dense at the start.
DENSE_STEPS = {"faithful": (10, 2), "balanced": (10, 2), "turbo": (10, 3), "few_step": (4, 1), "auto": (10, 1)}


@pytest.fixture
def short_videos(monkeypatch):
    """Presets that take the tiny model's few tokens."""
    for name, budget in PRESETS.items():
        monkeypatch.setitem(PRESETS, name, replace(budget, min_tokens=0))


@pytest.fixture
def sparse(model, short_videos, monkeypatch):
    """sparse(preset, profile): the model behind both nodes, every other input as it comes."""
    from dit_accel.nodes.attention_budget import DitAccelBudget
    from dit_accel.nodes.sparse_attention import DitAccelSparseAttention

    def defaults(node):
        inputs = {one.id: getattr(one, "default", None) for one in node.define_schema().inputs}
        return {name: value for name, value in inputs.items() if value is not None}

    monkeypatch.setattr(DitAccelSparseAttention, "hidden", SimpleNamespace(unique_id=None))

    def make(preset=None, profile=None):
        chosen = {} if preset is None else {"preset": preset}
        (budget,) = DitAccelBudget.execute(**{**defaults(DitAccelBudget), **chosen}, profile=profile).result
        inputs = {**defaults(DitAccelSparseAttention), "fallback": "reference", "guard": "off", "budget": budget}
        (patched,) = DitAccelSparseAttention.execute(**{**inputs, "model": model}).result
        return patched

    return make


def a_profile(model) -> Profile:
    network = model.model.diffusion_model
    heads = network.num_heads
    return Profile(
        pattern="svg2",
        model=type(network).__name__,
        layers=(0, 1),
        calls=LAYERS,
        heads=heads,
        floor=0.0,
        max_density=1.0,
        top_p=((0.3,) * heads,) * LAYERS,
        density=(0.3,) * LAYERS,
        error=(0.1,) * LAYERS,
        target="error",
        target_value=0.1,
        met=True,
    )


@pytest.mark.parametrize("preset", DENSE_STEPS)
def test_a_preset_decides_what_is_sparse(tiny, case, sparse, preset):
    steps, dense_steps = DENSE_STEPS[preset]
    patched = sparse(preset)
    tiny.sample(patched, case, steps=steps)
    (run,) = tiny.history(patched)
    assert run.budget == ("auto (few_step)" if preset == "auto" else preset)
    assert run.dense[reasons.OUTSIDE_WINDOW] == dense_steps * LAYERS
    assert run.dense[reasons.DENSE_BLOCK] == steps - dense_steps
    assert run.sparse == {"torch": steps - dense_steps}
    assert not run.profiled


def test_the_nodes_own_default_is_auto(tiny, case, sparse):
    patched = sparse()
    for steps in (10, 11):
        tiny.sample(patched, case, steps=steps)
    assert [run.budget for run in tiny.history(patched)] == ["auto (few_step)", "auto (faithful)"]


def test_presets_spend_what_they_name(tiny, case, sparse):
    density = {}
    for preset in ("faithful", "balanced", "turbo"):
        patched = sparse(preset)
        tiny.sample(patched, case, steps=5)
        density[preset] = tiny.history(patched)[0].density
    assert density["turbo"] < density["balanced"] < density["faithful"] < 1


@pytest.mark.parametrize("preset", DENSE_STEPS)
def test_every_preset_keeps_its_profile(tiny, case, model, sparse, preset):
    """The profile asks for far less than the preset does."""
    patched, plain = sparse(preset, a_profile(model)), sparse(preset)
    for one in (patched, plain):
        tiny.sample(one, case, steps=4)
    (with_profile,), (without,) = tiny.history(patched), tiny.history(plain)
    assert with_profile.profiled and not without.profiled
    assert with_profile.sparse == without.sparse
    assert with_profile.density < without.density
