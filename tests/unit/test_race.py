"""The race between sparse and dense calls, with times by hand."""

import itertools

import pytest

from dit_accel.accel.attention.account.forward_statistics import CallNumbers, ForwardStatistics
from dit_accel.accel.attention.cost import race as module
from dit_accel.accel.attention.cost.race import LOSS, PATIENCE, Race

LAYERS, STEPS = 10, 20


class Clock:
    def __init__(self, seconds):
        self.seconds = seconds

    def laps(self):
        return [self.seconds]


class Sampling:
    """Steps of a model whose layers take `dense` or `sparse` seconds each and the rest of a forward 5."""

    def __init__(self, race, dense=1.0, sparse=0.5, layers=LAYERS):
        self.race, self.dense, self.sparse, self.layers = race, dense, sparse, layers
        self.step = itertools.count()
        self.seconds = 0.0

    def seconds_of(self, layer, choice):
        both = self.dense, self.sparse
        return both[choice](layer) if callable(both[choice]) else both[choice]

    def forward(self, window=True):
        """What the race said of each layer; outside of the window nobody asks it."""
        said = [self.race.verdict((layer, 100)) if window else False for layer in range(self.layers)]
        calls = []
        for layer, choice in enumerate(said):
            laps = (self.seconds_of(layer, bool(choice)),)
            calls.append(CallNumbers(layer, 0.3, 0.0, laps, top_p=0.9 if choice else None, key=(layer, 100)))
        spent = 5 + sum(sum(call.laps) for call in calls)
        self.seconds += spent
        forward = ForwardStatistics(step=next(self.step), watch=Clock(spent))
        forward.calls = calls
        self.race.learn(forward)
        return said


def sampling(**changes):
    return Sampling(Race(STEPS), **changes)


def test_one_layer_is_tried_then_all_follow():
    run = sampling()
    run.forward(window=False)
    for _ in range(2):
        assert run.forward() == [True, *[None] * (LAYERS - 1)]
    for _ in range(5):
        assert run.forward() == [True] * LAYERS
    assert run.race.summary == "sparse calls took 0.50 of the time of dense ones"


def test_a_run_that_is_sparse_from_its_first_step_compares_with_the_other_layers():
    run = sampling()
    assert run.forward() == run.forward() == [True, *[None] * (LAYERS - 1)]
    assert run.forward() == [True] * LAYERS


@pytest.mark.parametrize("sparse", [1.01, 2.0, 10.0])
def test_where_dense_is_faster_the_run_loses_next_to_nothing(sparse):
    run = sampling(sparse=sparse)
    for step in range(STEPS):
        run.forward(window=step >= 4)
    dense = STEPS * (5 + LAYERS)
    assert run.seconds <= dense * (1 + LOSS) + 2 * (sparse - 1), "more than the trial was lost"
    assert run.race.summary == f"sparse calls took {sparse:.2f} of the time of dense ones"


def test_a_first_call_that_compiles_is_no_judge():
    calls = itertools.count()
    run = sampling(sparse=lambda layer: 30.0 if layer == 0 and next(calls) == 0 else 0.5)
    for _ in range(2):
        run.forward()
    assert run.forward() == [True] * LAYERS


def test_each_layer_goes_on_as_its_own_times_say():
    run = sampling(sparse=lambda layer: 1.5 if layer in (3, 7) else 0.5)
    for step in range(STEPS):
        said = run.forward(window=step >= 4)
    assert said == [layer not in (3, 7) for layer in range(LAYERS)]


def test_a_layer_that_lost_is_tried_again_and_may_win(monkeypatch):
    """Its map may be sparser in later steps."""
    monkeypatch.setattr(module, "LOSS", 0.1)
    slow = True
    run = sampling(sparse=lambda layer: 1.2 if layer == 3 and slow else 0.5)
    for _ in range(5):
        said = run.forward()
    assert said[3] is False
    slow = False
    again = [run.forward()[3] for _ in range(3 * PATIENCE)]
    assert again.index(True) <= PATIENCE and again[-1] is True


def test_a_machine_that_becomes_slower_while_sparse_does_not_flap_forever():
    """What is compared was timed at different times; a layer then pays at most what it was promised to."""
    run = sampling()
    for _ in range(6):
        run.forward()
    run.sparse = 1.3
    for _ in range(STEPS):
        run.forward()
    lost = run.race._lost
    assert lost <= LAYERS * module.KEPT * 0.3 + LOSS * run.seconds


def test_nobody_asked_nothing_is_said():
    run = sampling()
    run.forward(window=False)
    assert run.race.summary == ""


def test_calls_of_another_size_are_judged_apart():
    race = Race(STEPS)
    run = Sampling(race, dense=1.0, sparse=0.4)
    for _ in range(4):
        run.forward()
    key = (0, 20)
    assert race.verdict(key) is True  # by what the others gained, until it was timed itself
    for step, seconds in enumerate((0.1, 0.3, 0.3)):
        forward = ForwardStatistics(step=step, watch=Clock(1.0))
        forward.calls = [CallNumbers(0, 0.3, 0.0, (seconds,), top_p=0.9 if step else None, key=key)]
        race.learn(forward)
    assert race.verdict(key) is False and race.verdict((0, 100)) is True
