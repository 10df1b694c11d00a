"""What Record measures: in which steps, of which layers, and whether it is what sparse attention would really do."""

import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch

from dit_accel.accel.attention.account.forward_statistics import CallNumbers, ForwardStatistics
from dit_accel.accel.attention.account.sample import sampled_rows
from dit_accel.accel.attention.executor import execute
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.profiles import observer
from dit_accel.accel.attention.profiles.observer import CANDIDATES, FLOOR, LEVELS, Observer, measure, observed_steps
from dit_accel.accel.attention.spending import Spending
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.closeness import assert_close, distance
from dit_accel.tests.support.oracle import token_mask

LAYOUT = TokenLayout((6, 8, 8), prefix=6, suffix=2)
HEADS = 3
SPENDINGS = [Spending(0.2, False, 0.0, 1.0), Spending(0.8, False, FLOOR, 0.6), Spending(0.95, False, FLOOR, 1.0)]
TURN = 4


def attention_call(batch: int = 2, seed: int = 0):
    """Smooth over the video, so that blocks mean something, and heads of different sharpness."""
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(batch, HEADS, LAYOUT.total, 16, generator=generator).cumsum(2) / 8 for _ in range(3))
    q = q * torch.tensor([0.5, 1.0, 3.0])[:, None, None]
    return replace(make_call(q, k, v, LAYOUT, branches=("cond", "uncond")[:batch]), shared={})


@pytest.mark.parametrize("steps", range(1, 201))
def test_the_steps_of_the_three_levels(steps):
    levels = observed_steps(steps)
    assert set(levels) <= set(range(steps))
    by_level = Counter(levels.values())
    if steps <= LEVELS:
        assert 1 <= len(by_level) <= steps
    else:
        assert by_level == dict.fromkeys(range(LEVELS), observer.turns(steps))
    assert list(levels.values()) == sorted(levels.values())
    # Where presets are dense, sparse attention will not be asked for.
    assert min(levels) >= round(0.2 * steps) or steps < LEVELS
    assert len(levels) < steps or steps < LEVELS, "a step that is not observed can be timed"
    runs = [[step for step in levels if levels[step] == level] for level in sorted(by_level)]
    for before, after in itertools.pairwise(runs):
        assert before[-1] < after[0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 20, 50, 199])
def test_each_layer_is_measured_once_at_each_level(steps):
    watcher, levels = Observer("svg2", 1.0, steps), observed_steps(steps)
    for block in range(9):
        seen = [levels[step] for step in range(steps) if watcher.measures(block, step)]
        assert seen == sorted(set(levels.values()))
    assert [watcher.observes(step) for step in range(steps)] == [step in levels for step in range(steps)]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_measured_is_what_each_plan_does(pattern):
    call = attention_call()
    density, error, norm = measure(call, pattern, SPENDINGS, TURN)
    assert density.shape == error.shape == (HEADS, len(SPENDINGS))
    assert density.dtype == error.dtype == norm.dtype == torch.float32

    rows = sampled_rows(LAYOUT, observer.ROWS, TURN, call.q.device)
    q, k, v = (x.double() for x in (call.q, call.k, call.v))
    exact = ((q @ k.mT * call.scale).softmax(-1) @ v)[:, :, rows]
    assert_close(norm, exact.square().sum((0, 2, 3)), units=64)
    for place, spending in enumerate(SPENDINGS):
        plan = PATTERNS[pattern].plan(call, spending)
        out = execute(call.q, call.k, call.v, plan, scale=call.scale, backend="reference")[:, :, rows]
        expected = (out.double() - exact).square().sum((0, 2, 3))
        assert (expected > 0).all()
        assert distance(error[:, place], expected) <= 1e-3
        by_head = token_mask(plan, LAYOUT.total).double().mean((0, 2, 3))
        assert_close(density[:, place], by_head)
    assert (density[:, 0] < density[:, 2]).all()


@pytest.mark.parametrize("pattern", ["svg2", "svg_ear"])
@pytest.mark.parametrize("numbers", [1, 2 * 32 * LAYOUT.total * 2])
def test_heads_in_parts_give_the_same(pattern, numbers, monkeypatch):
    """One head at a time, and two and one."""
    whole = measure(attention_call(), pattern, SPENDINGS, TURN)
    monkeypatch.setattr(observer, "CHUNK", numbers)
    for a, b in zip(whole, measure(attention_call(), pattern, SPENDINGS, TURN), strict=True):
        assert_close(a, b, units=64)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_half_precision_is_measured_beside_itself(pattern):
    """What is measured is what is dropped, not what rounding costs."""
    call = attention_call(batch=1)
    half = make_call(call.q.bfloat16(), call.k.bfloat16(), call.v.bfloat16(), LAYOUT)
    everything = [Spending(1.0, True, 1.0, 1.0)]
    density, error, norm = measure(half, pattern, everything, TURN)
    assert (density == 1).all()
    assert (error.squeeze(-1) / norm < 1e-9).all()


class Watch:
    """A stopwatch that says what it is told."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def laps(self) -> list[float]:
        return [self.seconds]


def measured(value: float) -> tuple[torch.Tensor, ...]:
    """Density, error and norm of two heads that tell where they come from."""
    wide = torch.full((2, len(CANDIDATES)), value)
    return wide / 100, wide, torch.full((2,), 10 * value)


def evaluation(step: int, *, seconds: float, observed=(), dense=(), sparse=(), trials=(), observing=0.0):
    """A read evaluation. observed: (block, value); dense: seconds; sparse: (density, planning, kernel, guard)."""
    calls = [CallNumbers(block, 1.0, 0.0, (taken,)) for block, taken in enumerate(dense)]
    calls += [CallNumbers(block, density, 0.0, tuple(laps), 0.9) for block, (density, *laps) in enumerate(sparse)]
    return ForwardStatistics(
        sparse=Counter(triton=len(sparse)) if sparse else Counter(),
        step=step,
        sigma=1.0 - step / 10,
        watch=Watch(seconds),
        calls=calls,
        trials=list(trials),
        observing=observing,
        observations=[(block, measured(value)) for block, value in observed],
    )


def test_a_recording_of_a_dense_run():
    """Four steps, three of them observed; guidance evaluated apart in each."""
    watcher = Observer("svg2", 1.0, 4)
    assert list(observed_steps(4)) == [1, 2, 3]
    for step in range(4):
        for branch in (1.0, 3.0):
            observed = [(block, branch + block) for block in (0, 1)] if step else []
            watcher.learn(
                evaluation(
                    step,
                    seconds=2.0 + 0.5 * len(observed),
                    observing=0.5 * len(observed),
                    observed=observed,
                    dense=(0.3, 0.5, 0.4),
                    trials=[(0.2, 0.1)] if step == 2 and branch == 1.0 else [],
                )
            )
    recording = watcher.recording("WanModel", steps=4, dense_steps=1)
    assert (recording.pattern, recording.model, recording.heads) == ("svg2", "WanModel", 2)
    assert (recording.layers, recording.top_p, recording.floor) == ((0, 1), CANDIDATES, FLOOR)
    assert [level.sigma for level in recording.levels] == pytest.approx([0.9, 0.8, 0.7])
    for level in recording.levels:
        assert level.density.dtype == torch.float64
        assert not level.density.is_cuda
        # Densities are means of the two branches, errors and norms their sums.
        assert_close(level.density[:, 0, 0], torch.tensor([0.02, 0.03], dtype=torch.float64), dtype=torch.float32)
        assert_close(level.error[:, 1, 3], torch.tensor([4.0, 6.0], dtype=torch.float64), dtype=torch.float32)
        assert_close(level.norm[:, 0], torch.tensor([40.0, 60.0], dtype=torch.float64), dtype=torch.float32)
    timing = recording.timing
    assert (timing.dense_step, timing.dense_call, timing.calls) == (4.0, 0.4, 6)
    assert (timing.steps, timing.dense_steps, timing.problem) == (4, 1, None)
    assert timing.sparse == ((0.2, 0.1),)


def test_a_recording_of_a_sparse_run():
    """Dense steps give the time of a step, sparse calls the time of a call, planning and kernel but not the guard."""
    watcher = Observer("svg2", 1.0, 4)
    watcher.problem = "no GPU"
    watcher.learn(evaluation(0, seconds=5.0, dense=(0.5, 0.5)))
    for step in (1, 2, 3):
        watcher.learn(evaluation(step, seconds=1.0, observed=[(0, 1.0)], sparse=[(0.3, 0.1, 0.2, 9.0)]))
    timing = watcher.recording("WanModel", 4, 1).timing
    assert (timing.dense_step, timing.dense_call, timing.problem) == (5.0, 0.5, "no GPU")
    assert timing.sparse == ((0.3, pytest.approx(0.3)),) * 3


def test_nothing_measured_is_no_recording():
    watcher = Observer("svg2", 1.0, 4)
    watcher.learn(evaluation(0, seconds=5.0, dense=(0.5,)))
    assert watcher.recording("WanModel", 4, 1) is None


def test_layers_that_were_not_seen_at_every_level_are_left_out():
    """As where a run was interrupted, or a cache skipped a step."""
    watcher = Observer("svg2", 1.0, 4)
    watcher.learn(evaluation(1, seconds=1.0, observed=[(0, 1.0), (1, 1.0), (2, 1.0)], dense=(0.1,) * 3))
    watcher.learn(evaluation(2, seconds=1.0, observed=[(1, 1.0), (2, 1.0)], dense=(0.1,) * 3))
    recording = watcher.recording("WanModel", 4, 1)
    assert recording.layers == (1, 2)
    assert len(recording.levels) == 2
    assert recording.levels[0].norm.shape == (2, 2)
    watcher.learn(evaluation(3, seconds=1.0, observed=[(0, 1.0)], dense=(0.1,) * 3))
    assert watcher.recording("WanModel", 4, 1) is None


def test_one_call_at_each_level_is_tried_for_its_time():
    watcher, tried = Observer("svg2", 1.0, 50), Counter()
    for step, level in observed_steps(50).items():
        for _ in range(3):
            tried[level] += watcher.tries(step)
    assert tried == {0: 1, 1: 1, 2: 1}


def test_a_stopped_observer_measures_no_more():
    watcher = Observer("svg2", 1.0, 4)
    assert watcher.measures(0, 1)
    watcher.stop("out of memory")
    assert not any(watcher.measures(block, step) for block in range(4) for step in range(4))
