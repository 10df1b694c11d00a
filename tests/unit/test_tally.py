"""The timeline of a run, cell by cell, and where its time went."""

import math
from collections import Counter
from dataclasses import astuple

import pytest
import torch

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.forward_statistics import CallNumbers, ForwardStatistics, SampleNumbers
from dit_accel.accel.attention.account.sample import Sample
from dit_accel.accel.attention.account.stopwatch import Stopwatch
from dit_accel.accel.attention.account.tally import Tally
from dit_accel.accel.attention.account.timeline import Timeline, Times
from dit_accel.accel.attention.budget import PRESETS
from dit_accel.accel.attention.plan import BlockOrder, SparsePlan
from dit_accel.accel.attention.run import Run, Settings
from dit_accel.accel.attention.schedule import SigmaWindow


class Watch:
    """A stopwatch that says what it is told."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def laps(self) -> list[float]:
        return [self.seconds]


def sparse(block: int, density: float = 0.25, laps=(0.1, 0.2, 0.05), sample=(), finite: bool = True) -> CallNumbers:
    """sample: squared error, squared norm and mass."""
    return CallNumbers(block, density, 0.0, laps, 0.9, finite, SampleNumbers(*sample) if sample else None)


def dense(block: int, seconds: float = 0.4) -> CallNumbers:
    return CallNumbers(block, 1.0, 0.0, (seconds,))


def evaluation(*calls: CallNumbers, step: int = 0, seconds: float = 10.0, reason: str = "mask", **facts):
    """An evaluation that was read."""
    kinds = Counter("sparse" if call.top_p is not None else "dense" for call in calls)
    return ForwardStatistics(
        sparse=Counter({"triton": kinds["sparse"]} if kinds["sparse"] else {}),
        dense=Counter({reason: kinds["dense"]} if kinds["dense"] else {}),
        expected=len(calls),
        step=step,
        sigma=1 - step / 10,
        watch=Watch(seconds),
        calls=list(calls),
        **facts,
    )


def untouched(reason: str, calls: int, step: int = 0, seconds: float = 10.0) -> ForwardStatistics:
    return ForwardStatistics.all_dense(reason, calls, step=step, sigma=1 - step / 10, watch=Watch(seconds))


def timeline(*forwards: ForwardStatistics) -> Timeline:
    tally = Tally()
    for one in forwards:
        tally.add(one)
    return tally.timeline(("a sentence",))


def test_cells_lie_by_layer_and_step():
    made = timeline(
        evaluation(dense(0), sparse(1, 0.5), sparse(2, 0.25), step=3),
        evaluation(dense(0), sparse(1, 0.4), sparse(2, 0.2), step=1),
    )
    assert made.density == ((1.0, 1.0), (0.4, 0.5), (0.2, 0.25))
    assert [(step.number, step.sigma) for step in made.steps] == [(2, 0.9), (4, 0.7)]
    assert made.error == made.mass == ((None, None),) * 3
    assert made.guard == ("a sentence",)


def test_a_cell_without_a_call_is_blank():
    made = timeline(evaluation(sparse(0, 0.5), sparse(2, 0.25)), evaluation(sparse(1, 0.5), step=1))
    assert made.density == ((0.5, None), (None, 0.5), (0.25, None))


def test_an_evaluation_that_was_left_alone_is_dense_in_every_layer():
    made = timeline(untouched(reasons.OUTSIDE_WINDOW, 2, step=0), evaluation(sparse(0, 0.5), sparse(1, 0.25), step=1))
    assert made.density == ((1.0, 0.5), (1.0, 0.25))
    assert made.steps[0].dense == reasons.OUTSIDE_WINDOW
    assert made.steps[1].dense is None


def test_a_run_that_was_left_alone_has_the_layers_that_its_family_announces():
    made = timeline(untouched(reasons.TOO_SHORT, 3), untouched(reasons.TOO_SHORT, 3, step=1))
    assert made.density == ((1.0, 1.0),) * 3
    assert made.error == ((None, None),) * 3


def test_evaluations_of_one_step_share_its_cells():
    """As cond and uncond, or the halves of Heun's step, one of them outside the window."""
    made = timeline(
        evaluation(sparse(0, 0.5), seconds=2.0),
        evaluation(sparse(0, 0.25), seconds=3.0),
        untouched(reasons.OUTSIDE_WINDOW, 1, seconds=4.0),
    )
    assert made.density == ((pytest.approx((0.5 + 0.25 + 1) / 3),),)
    (step,) = made.steps
    assert (step.forwards, step.seconds, step.dense) == (3, 9.0, None)


def test_errors_are_pooled_by_their_squares():
    """Not the mean of relative errors: a branch of small outputs must not count as much as one of large ones."""
    made = timeline(
        evaluation(sparse(0, sample=(4.0, 100.0, 0.9)), sparse(1, sample=(1.0, 1.0, 0.5))),
        evaluation(sparse(0, sample=(0.0, 300.0, 0.7)), sparse(1)),
    )
    assert made.error == ((math.sqrt(4 / 400),), (1.0,))
    assert made.mass == ((pytest.approx(0.8),), (0.5,))


def test_a_sample_of_an_output_that_is_not_finite_is_blank():
    made = timeline(evaluation(sparse(0, sample=(4.0, 100.0, 0.9), finite=False)))
    assert made.error == made.mass == ((None,),)


def test_attention_that_gives_nothing_has_no_relative_error():
    made = timeline(evaluation(sparse(0, sample=(0.0, 0.0, 1.0))))
    assert (made.error, made.mass) == (((None,),), ((1.0,),))


def test_evaluations_without_attention_leave_no_trace():
    assert timeline(ForwardStatistics(step=2, watch=Watch(5.0))) == Timeline(guard=("a sentence",))


def test_a_dense_step_names_the_commonest_reason_of_the_videos_calls():
    one = evaluation(dense(0), dense(1), reason=reasons.MASK)
    one.dense.update({reasons.CROSS_ATTENTION: 4, reasons.OTHER_STREAM: 9, reasons.DENSE_BLOCK: 1})
    assert timeline(one).steps[0].dense == reasons.MASK


def test_a_step_that_no_video_call_reached_says_so():
    only = ForwardStatistics(dense=Counter({reasons.CROSS_ATTENTION: 4}), watch=Watch(1.0))
    assert timeline(only).steps[0].dense == reasons.NO_CALL


def test_an_observed_step_is_marked():
    made = timeline(evaluation(sparse(0)), evaluation(sparse(0), observed=True), evaluation(sparse(0), step=1))
    assert [step.observed for step in made.steps] == [True, False]


def test_times_go_where_they_were_spent_and_add_up():
    made = timeline(
        untouched(reasons.OUTSIDE_WINDOW, 2, step=0, seconds=7.0),
        evaluation(dense(0), dense(1), step=1, seconds=5.0, observing=1.5),
        evaluation(dense(0, 0.4), sparse(1, laps=(0.1, 0.2, 0.05)), sparse(2, laps=(0.1, 0.3)), step=2, seconds=10.0),
        evaluation(sparse(0, laps=(0.5, 0.5, 0.5)), step=3, seconds=4.0, observing=0.25),
    )
    times = made.times
    assert times.planning == pytest.approx(0.7)
    assert times.kernel == pytest.approx(1.0)
    assert times.dense == pytest.approx(0.4)
    assert times.guard == pytest.approx(0.55)
    assert times.dense_steps == pytest.approx(7.0 + 3.5)
    assert times.recording == pytest.approx(1.75)
    assert times.other == pytest.approx(10.0 - 1.15 + 4.0 - 1.5 - 0.25)
    assert sum(astuple(times)) == pytest.approx(sum(step.seconds for step in made.steps)) == 26.0


def test_no_time_is_negative():
    """Clocks of calls on the device may run past the host's."""
    assert timeline(evaluation(sparse(0, laps=(1.0, 1.0)), seconds=1.5)).times == Times(planning=1.0, kernel=1.0)


def test_an_evaluation_that_was_thrown_away_costs_time_alone():
    tally = Tally()
    tally.discard(evaluation(sparse(0, 0.1), seconds=3.0))
    tally.add(untouched(reasons.GUARD, 1, seconds=4.0))
    made = tally.timeline(())
    assert (made.times.guard, made.times.dense_steps) == (3.0, 4.0)
    assert made.density == ((1.0,),)
    assert made.steps[0].forwards == 1


# What is read of an evaluation.


def a_plan(capped: torch.Tensor | None = None) -> SparsePlan:
    """One of two key blocks kept, by one query block."""
    index = torch.zeros(1, 1, dtype=torch.int32)
    tokens = torch.arange(4, dtype=torch.int32)[None]
    queries, keys = (BlockOrder(tokens, torch.tensor([ends], dtype=torch.int32), index) for ends in ([0, 4], [0, 2, 4]))
    return SparsePlan(queries, keys, torch.tensor([[[[True, False]]]]), capped)


def stopped(laps: int) -> Stopwatch:
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(laps):
        watch.mark()
    return watch


def scalars(*values: float) -> Sample:
    return Sample(*(torch.tensor(value) for value in values))


def test_what_was_recorded_is_what_is_read():
    """Calls of every kind in a row: each gets its own numbers back."""
    forward = ForwardStatistics()
    forward.record(a_plan(), stopped(2), "triton", "a", block=1, top_p=0.8)
    forward.record_dense(2, stopped(1))
    capped = torch.tensor([[[True], [False]]])
    total = torch.tensor(3.0)
    forward.record(
        a_plan(capped), stopped(3), "triton 8-bit", "b", block=3, total=total, sample=scalars(0.25, 4.0, 0.75)
    )
    forward.record(a_plan(), stopped(3), "triton", "c", block=4, total=torch.tensor(math.inf))
    forward.record(a_plan(), stopped(3), "triton", "d", block=5, total=torch.tensor(math.nan))
    forward.record_trial(a_plan(), stopped(1))
    forward.record_observation(2, (total,), stopped(1))
    forward.read()
    first, second, third, fourth, fifth = forward.calls
    assert (first.block, first.density, first.capped, first.top_p, first.finite) == (1, 0.5, 0.0, 0.8, True)
    assert (first.sample, len(first.laps)) == (None, 2)
    assert (second.block, second.density, second.top_p, second.sample, len(second.laps)) == (2, 1.0, None, None, 1)
    assert (third.block, third.density, third.capped, third.finite) == (3, 0.5, 0.5, True)
    assert third.sample == (0.25, 4.0, 0.75)
    assert (fourth.finite, fifth.finite) == (False, False)
    assert forward.sparse == {"triton": 3, "triton 8-bit": 1}
    assert forward.measured == {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}
    assert [density for density, _ in forward.trials] == [0.5]
    assert forward.observing > 0


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sample_that_met_nan_measured_nothing(place, value):
    """A key that is not kept may be NaN: dense attention is, the sparse output is not."""
    values = [0.25, 4.0, 0.75]
    values[place] = value
    forward = ForwardStatistics()
    forward.record(a_plan(), stopped(3), "triton", total=torch.tensor(1.0), sample=scalars(*values))
    forward.read()
    (call,) = forward.calls
    assert call.finite
    assert call.sample is None


class Event:
    """A CUDA event: its time is known once the host has waited for it or for a later one."""

    clock, waited = 0.0, -1.0

    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self, stream) -> None:
        assert stream == "stream of cuda:1"
        Event.clock += 0.5
        self.at = Event.clock

    def synchronize(self) -> None:
        Event.waited = max(Event.waited, self.at)

    def elapsed_time(self, other) -> float:
        if Event.waited < max(self.at, other.at):
            raise ValueError("Both events must be completed before calculating elapsed time.")
        return 1000 * (other.at - self.at)


def test_a_dense_evaluation_on_a_gpu_can_be_timed(monkeypatch):
    """Nothing else waits for the device: no call of it left a number there."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    watch = Stopwatch(torch.device("cuda", 1))
    forward = ForwardStatistics.all_dense(reasons.TOO_SHORT, 1, watch=watch)
    forward.record_dense(0, call := Stopwatch(torch.device("cuda", 1)))
    call.mark()
    watch.mark()
    run = Run(Settings(), PRESETS["few_step"], SigmaWindow(), "WanModel")
    run.add(forward)
    assert run.close().timeline.times.dense_steps == 1.5
    assert forward.calls[0].laps == (0.5,)
