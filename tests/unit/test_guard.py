"""The guard: which calls it samples, what it takes for a broken promise, and what it does about one."""

import math

import pytest
import torch

from dit_accel.accel.attention.account.forward_statistics import CallNumbers, SampleNumbers
from dit_accel.accel.attention.account.sample import sample, sampled_rows
from dit_accel.accel.attention.executor import execute
from dit_accel.accel.attention.guard import EVERY, RAISES, ROWS, Guard, Promise
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.plan import SparsePlan
from dit_accel.accel.attention.planners.blocks import block_order, ordered_blocks
from dit_accel.accel.attention.planners.select import make_tail
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.oracle import attention_of_plan, token_mask

CPU = torch.device("cpu")
MASS = Promise(error=None, mass=True)


def found(block: int = 3, *, error: float = 0.0, mass: float = 0.9, capped: float = 0.0, finite: bool = True):
    """A sampled call that promised 0.9; error: relative."""
    return CallNumbers(block, 0.3, capped, (0.0,) * 3, 0.9, finite, SampleNumbers(error**2 * 100.0, 100.0, mass))


def guard_after(*calls: CallNumbers, promise: Promise = MASS, steps: int = 30) -> Guard:
    """A guard that learnt the calls in step 4 and begins step 5."""
    guard = Guard(True, steps)
    guard.begin(4)
    for call in calls:
        guard.learn(call, promise)
    guard.begin(5)
    return guard


@pytest.mark.parametrize("turn", [0, 1, 7, 1000])
@pytest.mark.parametrize("layout", [TokenLayout((5, 9, 13), prefix=7, suffix=3), TokenLayout((1, 1, 16))])
def test_sampled_rows_lie_one_in_each_stretch(layout, turn):
    rows = sampled_rows(layout, ROWS, turn, CPU)
    assert rows.dtype == torch.int64
    video = sorted((rows - layout.prefix).tolist())
    assert video[0] >= 0 and video[-1] < layout.video
    assert len(set(video)) == ROWS
    # Round a circle, the largest gap between one of each of equal stretches is below two of them.
    gaps = [b - a for a, b in zip(video, [*video[1:], video[0] + layout.video], strict=True)]
    assert max(gaps) < 2 * layout.video / ROWS + 1


def test_a_short_video_is_sampled_whole_and_turns_differ():
    short = TokenLayout((1, 3, 3), prefix=4)
    assert sorted(sampled_rows(short, ROWS, 5, CPU).tolist()) == list(range(4, 13))
    long = TokenLayout((4, 8, 8))
    assert len({tuple(sampled_rows(long, ROWS, turn, CPU).tolist()) for turn in range(8)}) == 8


def test_every_layer_is_sampled_once_in_four_steps():
    guard = Guard(True, 30)
    for block in range(9):
        turns = [guard.samples(block, step) for step in range(30)]
        assert all(sum(turns[start : start + EVERY]) == 1 for start in range(30 - EVERY))
    per_step = [sum(guard.samples(block, step) for block in range(40)) for step in range(30)]
    assert set(per_step) == {10}, "the work is spread evenly"


@pytest.mark.parametrize(("steps", "always"), [(1, True), (4, True), (10, True), (11, False)])
def test_few_steps_are_all_sampled(steps, always):
    guard = Guard(True, steps)
    assert all(guard.samples(block, step) for block in range(8) for step in range(steps)) == always


def test_a_broken_mass_promise_raises_the_layer_twice_then_it_is_dense():
    guard = Guard(True, 30)
    guard.begin(0)
    guard.learn(found(mass=0.84), MASS)
    assert guard.raised(3, 0.9) == 0.9, "not in the step in which it was found"
    for raised in (0.95, 0.975):
        guard.begin(guard._step + 1)
        assert guard.raised(3, 0.9) == pytest.approx(raised)
        assert guard.raised(2, 0.9) == 0.9
        assert not guard.is_dense(3)
        guard.learn(found(mass=0.84), MASS)
    guard.begin(guard._step + 1)
    assert guard.is_dense(3)
    assert not guard.is_dense(2)
    assert len(guard.actions) == RAISES + 1
    assert guard.actions[0] == "layer 3, step 1: kept mass 0.84, 0.90 promised; top_p raised to 0.950"
    assert guard.actions[-1] == "layer 3, step 3: kept mass 0.84, 0.90 promised; dense from the next step on"


def test_a_raise_never_reaches_more_than_everything():
    guard = guard_after(found(mass=0.1))
    assert guard.raised(3, 1.0) == 1.0
    assert guard.raised(3, 0.05) < 1


@pytest.mark.parametrize(("mass", "broken"), [(0.851, False), (0.849, True), (1.0, False)])
def test_the_slack_of_mass(mass, broken):
    assert bool(guard_after(found(mass=mass)).actions) == broken


def test_a_raised_layer_is_on_probation_for_one_step():
    # Block 3 is not due in step 6.
    assert not Guard(True, 30).samples(3, 6)
    guard = Guard(True, 30)
    guard.begin(5)
    guard.learn(found(mass=0.5), MASS)
    guard.begin(6)
    assert guard.samples(3, 6)
    assert not guard.samples(7, 6)
    guard.begin(7)
    assert not guard.samples(3, 7 + 3)


@pytest.mark.parametrize("capped", [0.051, 1.0])
def test_capped_rows_promise_no_mass(capped):
    assert not guard_after(found(mass=0.2, capped=capped)).actions
    assert guard_after(found(mass=0.2, capped=0.049)).actions


def test_a_static_pattern_promises_no_mass():
    assert not guard_after(found(mass=0.2), promise=Promise(error=None, mass=False)).actions


def test_the_error_that_a_profile_promises():
    promise = Promise(error=0.05, mass=True)
    assert not guard_after(found(error=0.074, mass=0.1), promise=promise).actions, "a profile promises no mass"
    guard = guard_after(found(error=0.076), promise=promise)
    assert guard.actions == ["layer 3, step 5: error 0.076, 0.050 expected; top_p raised to 0.950"]
    static = Promise(error=0.05, mass=False)
    assert guard_after(found(error=0.076), promise=static).actions


def test_layers_are_judged_apart():
    guard = guard_after(found(1, mass=0.5), found(2, mass=0.9), found(5, mass=0.2))
    assert [sentence.split(",")[0] for sentence in guard.actions] == ["layer 1", "layer 5"]


def test_branches_apart_or_together_are_treated_alike():
    """cond is in order, uncond is not; what counts is their mean, and nothing happens between the two."""
    for masses, broken in (((0.95, 0.7), True), ((0.95, 0.8), False)):
        together = guard_after(found(mass=sum(masses) / 2))
        apart = Guard(True, 30)
        for mass in masses:
            apart.begin(4)
            assert apart.raised(3, 0.9) == 0.9
            apart.learn(found(mass=mass), MASS)
        apart.begin(5)
        assert apart.actions == together.actions
        assert bool(apart.actions) == broken


@pytest.mark.parametrize(
    "call",
    [
        found(mass=math.nan, finite=False),
        found(mass=0.1, finite=False),
        CallNumbers(3, 0.3, 0.0, (0.0,) * 3, 0.9),
        CallNumbers(3, 1.0, 0.0, (0.0,)),
    ],
    ids=["NaN", "output not finite", "not sampled", "dense"],
)
def test_no_finding(call):
    for promise in (MASS, Promise(0.01, True)):
        guard = guard_after(call, promise=promise)
        assert not guard.actions
        assert guard.raised(3, 0.9) == 0.9


def test_attention_without_any_norm_has_no_error():
    nothing = CallNumbers(3, 0.3, 0.0, (0.0,) * 3, 0.9, True, SampleNumbers(0.0, 0.0, 1.0))
    assert not guard_after(nothing, promise=Promise(0.05, True)).actions


def test_a_layer_that_gave_nan_stays_dense():
    guard = Guard(True, 30)
    guard.begin(2)
    guard.repeat(2, 4, mended=True)
    guard.repeat(2, None, mended=True)
    assert guard.is_dense(4) and not guard.is_dense(5)
    assert guard.actions == [
        "step 3: layer 4 gave NaN or Inf; run again, dense",
        "step 3: the model gave NaN or Inf; run again, dense",
    ]
    # What was sampled in the layer before says nothing more.
    guard.learn(found(4, mass=0.1), MASS)
    guard.begin(3)
    assert len(guard.actions) == 2


def test_where_dense_attention_gives_nan_too_nothing_is_left_to_guard():
    guard = Guard(True, 4)
    guard.repeat(0, 4, mended=False)
    assert not guard.on
    assert not guard.is_dense(4)
    assert not guard.samples(4, 1)
    assert guard.actions == ["step 1: the model gives NaN or Inf, with dense attention too"]


def test_what_the_last_step_broke_is_told():
    guard = Guard(True, 30)
    guard.begin(29)
    guard.learn(found(mass=0.5), MASS)
    guard.end()
    assert guard.actions == ["layer 3, step 30: kept mass 0.50, 0.90 promised; the run ended there"]
    guard.end()
    assert len(guard.actions) == 1


def test_off_it_samples_nothing():
    guard = Guard(False, 4)
    assert not any(guard.samples(block, step) for block in range(8) for step in range(4))


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_sample_against_attention_by_hand(batch, tail):
    """Two heads of different sharpness, some text, half of the blocks kept at random."""
    generator = torch.Generator().manual_seed(5)
    layout = TokenLayout((3, 4, 6), prefix=5, suffix=2)
    q, k, v = (torch.randn(batch, 2, layout.total, 16, generator=generator) for _ in range(3))
    q[:, 1] *= 4
    blocks = ordered_blocks(layout.grid, "cube", 8)
    order = block_order(layout, [blocks], torch.zeros(batch, 2, dtype=torch.int32))
    keep = torch.rand(batch, 2, order.blocks, order.blocks, generator=generator) < 0.5
    keep[..., 0], keep[..., 0, :] = True, True
    call = make_call(q, k, v, layout, branches=tuple("ab"[:batch]))
    plan = SparsePlan(order, order, keep, tail=make_tail(call, order) if tail else None)
    out, lse = execute(q, k, v, plan, scale=call.scale, backend="reference", return_lse=True)
    rows = sampled_rows(layout, ROWS, 3, CPU)
    measured = sample(q, k, v, out, lse, rows, call.scale, "reference")

    weights = (q.double() @ k.double().mT * call.scale).softmax(-1)
    exact = (weights @ v.double())[:, :, rows]
    sparse = attention_of_plan(q, k, v, plan, call.scale)[:, :, rows]
    kept = (weights * token_mask(plan, layout.total)).sum(-1)[:, :, rows].mean()
    assert all(value.shape == () and value.dtype == torch.float32 for value in measured)
    assert measured.error.item() == pytest.approx((sparse - exact).square().sum().item(), rel=1e-4)
    assert measured.norm.item() == pytest.approx(exact.square().sum().item(), rel=1e-4)
    if tail:
        assert kept < measured.mass <= 1
    else:
        assert measured.mass.item() == pytest.approx(kept.item(), rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_a_tail_never_accounts_for_more_than_all(seed):
    """Pooled keys under-estimate what they stand for, the more so the more the keys of a block differ."""
    generator = torch.Generator().manual_seed(seed)
    layout = TokenLayout((2, 4, 8))
    q, k, v = (torch.randn(1, 2, layout.total, 16, generator=generator) * 3 for _ in range(3))
    order = block_order(layout, [ordered_blocks(layout.grid, "raster", 8)], torch.zeros(1, 2, dtype=torch.int32))
    call = make_call(q, k, v, layout)
    keep = torch.zeros(1, 2, order.blocks, order.blocks, dtype=torch.bool)
    plan = SparsePlan(order, order, keep, tail=make_tail(call, order))
    out, lse = execute(q, k, v, plan, scale=call.scale, backend="reference", return_lse=True)
    rows = torch.arange(layout.total)
    assert 0 < sample(q, k, v, out, lse, rows, call.scale, "reference").mass.item() < 0.9
