"""The guard in real sampling runs: faults that are planted are found, mended and told; without it they go through."""

import itertools
from dataclasses import replace

import pytest
import torch

from dit_accel.accel.attention import executor, reasons
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.tests.support.closeness import NETWORK, assert_close


@pytest.fixture
def guarded(tiny, model):
    def make(guard="on", **changes):
        return tiny.sparse(model, guard=guard, **{"top_p": 0.9, "floor": 0.0, **changes})

    return make


@pytest.fixture
def nan_in_one_head(monkeypatch):
    """The third sparse call of a run gives NaN in its second head: block 0 in the second step of guidance in one
    batch."""
    calls = []
    execute = executor.execute

    def faulty(*args, **kwargs):
        out = execute(*args, **kwargs)
        calls.append(None)
        if len(calls) == 3:
            (out[0] if kwargs.get("return_lse") else out)[:, 1] = torch.nan
        return out

    monkeypatch.setattr(executor, "execute", faulty)
    return calls


@pytest.fixture
def drops_the_best_block(monkeypatch):
    """A planner that loses the key block of most mass, in every row."""
    planner = PATTERNS["svg2"]

    def plan(call, spending):
        call = replace(call, shared={})
        whole = planner.plan(call, spending)
        from dit_accel.accel.attention.planners.select import estimated_mass

        queries, keys = call.shared["clusters"]
        mass = estimated_mass(queries.centroids, keys.centroids, keys.sizes(), call.scale)
        best = torch.nn.functional.pad(mass.argmax(-1, keepdim=True) + 1, (0, 0, 1, 0), value=0)
        keep = whole.keep.clone()
        keep[:, :, 1:] = keep[:, :, 1:].scatter(-1, best[:, :, 1:], False)
        return replace(whole, keep=keep)

    monkeypatch.setitem(PATTERNS, "svg2", planner._replace(plan=plan))


def test_a_nan_is_computed_again_densely(tiny, case, guarded, nan_in_one_head):
    out = tiny.sample(guarded_model := guarded(), case, steps=4)
    assert torch.isfinite(out).all()
    (run,) = tiny.history(guarded_model)
    assert run.timeline.guard[0] == "step 2: layer 0 gave NaN or Inf; run again, dense"
    # The evaluation that was repeated is dense, and so is the layer from then on.
    assert all(row[1] == 1 for row in run.timeline.density)
    assert run.timeline.density[0][2:] == (1.0, 1.0)
    assert run.timeline.density[1][2] < 1
    assert run.dense[reasons.GUARD] == 2 + 2
    assert run.timeline.times.guard > 0


def test_without_the_guard_the_nan_goes_through(tiny, case, guarded, nan_in_one_head):
    out = tiny.sample(model := guarded("off"), case, steps=4)
    assert not torch.isfinite(out).all()
    (run,) = tiny.history(model)
    assert run.timeline.guard == ()
    assert len(nan_in_one_head) == 8


def test_a_nan_of_the_model_itself_is_left_alone(tiny, case, guarded, monkeypatch):
    """Dense gives it too: nothing is to be mended, and the sampler gets what it would have got."""
    model = guarded()
    network = model.model.diffusion_model
    monkeypatch.setattr(
        network, "unpatchify", lambda x, sizes: torch.full((x.shape[0], 16, *case.latent[2:]), torch.nan)
    )
    out = tiny.sample(model, case, steps=2)
    assert torch.isnan(out).any()
    (run,) = tiny.history(model)
    assert run.timeline.guard == ("step 1: the model gives NaN or Inf, with dense attention too",)
    assert run.sparse_calls == 2, "the second step is evaluated once, as if there were no guard"


def test_a_planner_that_drops_the_best_block_is_found_and_mended(tiny, case, model, guarded, drops_the_best_block):
    dense = tiny.sample(model, case, steps=8)
    watched, blind = guarded(), guarded("off")
    errors = [(tiny.sample(m, case, steps=8) - dense).norm() / dense.norm() for m in (watched, blind)]
    (found,) = tiny.history(watched)
    (missed,) = tiny.history(blind)
    assert any("kept mass" in sentence and "top_p raised" in sentence for sentence in found.timeline.guard)
    assert any("dense from the next step on" in sentence for sentence in found.timeline.guard)
    assert all(row[-1] == 1 for row in found.timeline.density), "both layers end dense"
    assert missed.timeline.guard == ()
    assert all(row[-1] < 1 for row in missed.timeline.density)
    assert errors[0] < errors[1]


def test_a_sound_planner_is_left_alone(tiny, case, guarded):
    tiny.sample(model := guarded(top_p=1.0, floor=1.0), case, steps=8)
    (run,) = tiny.history(model)
    assert run.timeline.guard == ()
    masses = [mass for row in run.timeline.mass for mass in row if mass is not None]
    assert min(masses) > 0.999 and max(masses) < 1.001
    errors = [error for row in run.timeline.error for error in row if error is not None]
    assert max(errors) < 1e-4


def test_guidance_in_one_batch_or_two_is_treated_alike(tiny, case, guarded, drops_the_best_block, monkeypatch):
    joint = tiny.sample(first := guarded(), case, steps=6)
    monkeypatch.setattr(type(first), "get_free_memory", lambda *_: 0)
    split = tiny.sample(second := guarded(), case, steps=6)
    assert_close(joint, split, units=8 * NETWORK)
    ((a,), (b,)) = map(tiny.history, (first, second))
    assert b.forwards == 2 * a.forwards
    assert a.timeline.guard == b.timeline.guard != ()


def test_the_rows_are_in_the_report_and_cost_little(tiny, case, guarded):
    tiny.sample(model := guarded(), case, steps=20)
    (run,) = tiny.history(model)
    for row in run.timeline.error:
        sampled = [step for step, error in enumerate(row) if error is not None]
        assert max(b - a for a, b in itertools.pairwise(sampled)) <= 4


@pytest.mark.thorough
def test_every_family_keeps_its_promise_where_everything_is_kept(tiny):
    """Text, reference and padded tokens included: what is sampled is the call's own dense attention."""
    for case in tiny.CASES:
        if not case.calls:
            continue
        model = case.model()
        watched = tiny.sparse(model, guard="on")
        assert_close(tiny.sample(watched, case), tiny.sample(model, case), units=NETWORK, what=case.name)
        (run,) = tiny.history(watched)
        assert run.timeline.guard == () and run.sparse_calls == case.calls * run.forwards, case.name
        masses = [mass for row in run.timeline.mass for mass in row]
        assert min(masses) > 0.999 and max(masses) < 1.001, case.name
