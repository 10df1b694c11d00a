"""Memory that runs out in an allocation of ours costs no result; in one of the model's, the model's error is raised."""

import dataclasses

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.profiles import observer
from dit_accel.accel.comfy.families import family_of
from dit_accel.accel.comfy.sparse import forward, patch
from dit_accel.tests.support.allocations import Allocations, one_each
from dit_accel.tests.support.closeness import NETWORK, assert_close


@pytest.fixture(scope="module")
def case(tiny):
    """One layer of 32 tokens."""
    (wan,) = (case for case in tiny.CASES if case.name == "wan t2v")
    return dataclasses.replace(wan, unet={**wan.unet, "num_layers": 1}, latent=(1, 16, 2, 8, 8))


@pytest.fixture(scope="module")
def model(case):
    with torch.inference_mode():
        return case.model()


@pytest.fixture
def few_candidates(monkeypatch):
    """One budget is measured instead of nine: the same allocations, fewer times."""
    monkeypatch.setattr(observer, "CANDIDATES", (0.5,))


class Runs:
    """Runs of one step of `model`, which has our nodes, whose result is `dense`."""

    def __init__(self, tiny, case, model, dense, comfyui):
        self.tiny, self.case, self.model, self.dense, self.comfyui = tiny, case, model, dense, comfyui

    def sample(self, allocations):
        with allocations:
            return self.tiny.sample(self.model, self.case, steps=1, cfg=1.0)

    def places(self):
        """Of the allocations of a warm run."""
        self.sample(Allocations())
        allocations = Allocations(comfyui=self.comfyui)
        self.sample(allocations)
        assert "out of memory" not in self.summary().line()
        return allocations.places

    def summary(self):
        return self.tiny.history(self.model)[-1]

    def fail(self, spared, place):
        """A run in which the allocation after `spared` of them, which is at `place`, fails."""
        allocations = Allocations(spared)
        try:
            out = self.sample(allocations)
        except torch.OutOfMemoryError as error:
            assert error is allocations.error
            assert not place.ours, f"the result was lost at {place}"
            return
        assert_close(out, self.dense, units=NETWORK)
        # Some of the model's own attention helps itself.
        assert "out of memory" in self.summary().line() or not place.ours, f"nothing was said of {place}"

    def survive(self, spared, within):
        """The summary of a run in which an allocation in our function `within` fails, whose result is right; so is
        the next one's."""
        failing = Allocations(spared, within)
        assert_close(self.sample(failing), self.dense, units=NETWORK)
        assert failing.count > spared, "nothing failed"
        summary = self.summary()
        assert_close(self.sample(Allocations()), self.dense, units=NETWORK)
        assert "out of memory" not in self.summary().line()
        return summary


@pytest.fixture
def runs(tiny, case, model, comfyui):
    def build(recorded=None, **settings):
        dense = tiny.sample(model, case, steps=1, cfg=1.0)
        ours = tiny.sparse(model, guard="on", **settings)
        return Runs(tiny, case, ours if recorded is None else patch.record(ours, recorded), dense, comfyui)

    return build


@pytest.mark.parametrize("end", [False, True])
def test_a_run_that_cannot_be_marked_is_finished(runs, end):
    ours, marking = runs(), Allocations(within="mark")
    ours.sample(marking)
    summary = ours.survive(marking.count // 2 if end else 0, "mark")
    assert (summary.start is None, summary.end is None) == (not end, end)
    assert patch.NO_MARK in summary.notes
    assert summary.sparse_calls == 1


def test_a_result_that_the_guard_cannot_check_is_kept(runs):
    summary = runs().survive(0, "_total")
    assert patch.UNCHECKED in summary.notes
    assert summary.sparse_calls == 1


@pytest.mark.parametrize("function", ["plan", "execute", "sample", "record"])
def test_a_sparse_call_without_memory_is_dense_and_counted(runs, function):
    summary = runs().survive(0, function)
    assert summary.dense[reasons.OUT_OF_MEMORY] == 1
    assert summary.sparse_calls == 0


def test_a_forward_whose_layout_finds_no_memory_is_dense_and_counted(runs, monkeypatch):
    def without_memory(self, *args):
        raise torch.OutOfMemoryError("stand-in")

    ours = runs()
    with monkeypatch.context() as patched:
        patched.setattr(
            forward, "family_of", lambda model: dataclasses.replace(family_of(model), layout=without_memory)
        )
        assert_close(ours.sample(Allocations()), ours.dense, units=NETWORK)
    assert ours.summary().dense == {reasons.OUT_OF_MEMORY: 1}


def test_a_run_whose_schedule_finds_no_memory_is_dense_and_counted(runs, model, monkeypatch):
    """Some models look their noise levels up in a tensor."""

    def without_memory(percent):
        raise torch.OutOfMemoryError("stand-in")

    ours = runs()
    with monkeypatch.context() as patched:
        patched.setattr(model.get_model_object("model_sampling"), "percent_to_sigma", without_memory)
        assert_close(ours.sample(Allocations()), ours.dense, units=NETWORK)
    assert ours.summary().dense[reasons.OUT_OF_MEMORY] == 1


def test_reading_what_was_counted_allocates_nothing(tiny, case, model):
    """svg1 asks whether its choice still holds: an answer to read beside the statistics."""
    ours = tiny.sparse(model, guard="on", pattern="svg1")
    with Allocations(0, within="read") as reading, Allocations(0, within="settle") as settling:
        tiny.sample(ours, case, steps=3, cfg=1.0)
    assert reading.count == settling.count == 0
    (run,) = tiny.history(ours)
    assert run.sparse_calls == 3


@pytest.mark.parametrize(
    ("recorded", "function", "said"),
    [
        (patch.ATTENTION, "_measure", f"measuring stopped: {reasons.OUT_OF_MEMORY}"),
        (patch.ATTENTION, "learn", f"measuring stopped: {reasons.OUT_OF_MEMORY}"),
        (patch.ATTENTION, "recording", f"measuring stopped: {reasons.OUT_OF_MEMORY}"),
        (patch.LINEAR, "add", patch.UNRECORDED),
        (patch.LINEAR, "close", patch.UNRECORDED),
    ],
)
def test_a_recording_without_memory_is_given_up_and_the_run_is_not(runs, few_candidates, recorded, function, said):
    ours = runs(recorded, pattern="pooled")
    summary = ours.survive(0, function)
    assert said in summary.notes
    assert summary.recording is None
    assert summary.sparse_calls == 1


def test_the_models_own_error_is_raised_and_nothing_stays(runs):
    ours = runs()
    places = ours.places()
    number = next(number for number, place in enumerate(places) if place.functions[:1] == ("apply",))
    failing = Allocations(number)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        ours.sample(failing)
    assert raised.value is failing.error
    assert ours.summary().end is None
    assert_close(ours.sample(Allocations()), ours.dense, units=NETWORK)
    assert ours.summary().sparse_calls == 1


@pytest.mark.thorough
def test_no_allocation_costs_a_result(runs, few_candidates):
    """Every line that allocates fails once in each part of a run that it belongs to, whichever pattern has it first;
    each run is also the next one of a run that failed."""
    known = set()
    kinds = [{"pattern": pattern} for pattern in PATTERNS]
    for settings in [*kinds, {"recorded": patch.ATTENTION}, {"recorded": patch.LINEAR}]:
        of_kind = runs(**settings)
        places = of_kind.places()
        numbers = one_each(places, known)
        for number in numbers:
            of_kind.fail(number, places[number])
        whole = of_kind.sample(Allocations())
        assert_close(whole, of_kind.dense, units=NETWORK)
        assert of_kind.summary().sparse_calls == 1
        print(f"\n{settings}: {len(numbers)} of {len(places)} allocations failed")
    assert len(known) > 200
