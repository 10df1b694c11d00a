"""What a call may spend: the budget of its layer and heads, as a profile and the guard have changed it."""

from dataclasses import replace

import pytest
import torch

from dit_accel.accel.attention.account.forward_statistics import CallNumbers, SampleNumbers
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.guard import Promise
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.profiles.profile import Profile
from dit_accel.accel.attention.run import Run, Settings
from dit_accel.accel.attention.schedule import SigmaWindow
from dit_accel.accel.attention.spending import Spending
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.oracle import token_mask

CPU = torch.device("cpu")
PROFILE = Profile(
    pattern="svg2",
    model="WanModel",
    layers=(0, 2, 5),
    calls=3,
    heads=3,
    floor=0.02,
    max_density=0.95,
    top_p=((0.5, 0.8, 1.0), (1.0, 1.0, 1.0), (0.9, 0.9, 0.9)),
    density=(0.5, 1.0, 0.3),
    error=(0.04, 0.0, 0.05),
    target="error",
    target_value=0.05,
    met=True,
)


def a_run(budget: Budget, sigmas=(1.0, 0.75, 0.5, 0.25, 0.0), **settings) -> Run:
    settings = Settings(budget=budget, **settings)
    return Run(settings, budget, SigmaWindow(), "WanModel", sigmas=sigmas)


def break_promise(run: Run, block: int) -> None:
    """A step whose samples of the block are bad, and the beginning of the next."""
    run.begin(1.0)
    run.guard.learn(
        CallNumbers(block, 0.3, 0.0, (0.0,) * 3, 0.9, True, SampleNumbers(25.0, 100.0, 0.1)),
        Promise(error=0.04, mass=True),
    )
    run.begin(0.75)


def test_without_a_profile_it_is_the_budgets():
    run = a_run(Budget(top_p=0.8, floor=0.1, max_density=0.6))
    assert run.spending(4, CPU) == Spending(0.8, False, 0.1, 0.6)
    assert a_run(Budget(top_p=1.0)).spending(4, CPU).everything
    assert run.promised_top_p(4) == 0.8


def test_a_layer_that_broke_its_promise_may_spend_more():
    run = a_run(Budget(top_p=0.8, floor=0.1))
    break_promise(run, 4)
    assert run.spending(4, CPU).top_p == pytest.approx(0.9)
    assert run.spending(3, CPU).top_p == 0.8
    assert run.promised_top_p(4) == 0.8, "what it is held to stays"


def test_a_profile_gives_each_head_its_own():
    run = a_run(Budget(top_p=0.3, floor=0.3, max_density=0.9, profile=PROFILE))
    spending = run.spending(0, CPU)
    assert spending.top_p.dtype == torch.float32
    assert spending.top_p.tolist() == pytest.approx([0.5, 0.8, 1.0])
    assert (spending.everything, spending.floor, spending.max_density) == (False, 0.02, 0.9)
    assert run.spending(2, CPU).everything
    assert run.promised_top_p(0) == pytest.approx(2.3 / 3)
    assert a_run(Budget(profile=PROFILE)).spending(0, CPU).max_density == 0.95, "as it was measured"


def test_the_heads_numbers_are_copied_to_the_device_once():
    run = a_run(Budget(profile=PROFILE))
    assert run.spending(0, CPU).top_p is run.spending(0, CPU).top_p


def test_the_guard_raises_every_head_of_a_profile():
    run = a_run(Budget(profile=PROFILE))
    break_promise(run, 0)
    assert run.spending(0, CPU).top_p.tolist() == pytest.approx([0.75, 0.9, 1.0])
    assert run.spending(5, CPU).top_p.tolist() == pytest.approx([0.9] * 3)


@pytest.mark.parametrize("changes", [{"model": "Other"}, {"calls": 30}, {"heads": 40}, {"pattern": "pooled"}])
def test_a_profile_of_something_else_is_refused(changes):
    run = a_run(Budget(profile=replace(PROFILE, **changes)))
    with pytest.raises(ValueError, match=r"profile: measured on .*, found WanModel with 3 layers of 3 heads and svg2"):
        run.check_profile(heads=3, calls=3)
    a_run(Budget(profile=PROFILE)).check_profile(heads=3, calls=3)
    a_run(Budget()).check_profile(heads=7, calls=9)


def a_call(seed: int = 0):
    layout = TokenLayout((6, 8, 8), prefix=3)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, 3, layout.total, 16, generator=generator).cumsum(2) / 8 for _ in range(3))
    return make_call(q, k, v, layout)


def density(call, pattern: str, spending: Spending) -> list[float]:
    """Of each head."""
    return token_mask(PATTERNS[pattern].plan(call, spending), call.layout.total).double().mean((0, 2, 3)).tolist()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_heads_of_one_plan_are_those_of_plans_of_their_own(pattern):
    numbers = [0.3, 0.7, 0.95]
    together = density(a_call(), pattern, Spending(torch.tensor(numbers), False, 0.02, 1.0))
    apart = [density(a_call(), pattern, Spending(top_p, False, 0.02, 1.0))[head] for head, top_p in enumerate(numbers)]
    assert together == pytest.approx(apart)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_head_at_1_keeps_everything_under_every_pattern(pattern):
    """A profile says so where nothing less meets its target; also where a map offers but a part."""
    whole = density(a_call(), pattern, Spending(torch.tensor([1.0, 0.5, 1.0]), False, 0.02, 1.0))
    assert whole[0] == whole[2] == 1
    assert whole[1] < 0.8


@pytest.mark.parametrize("pattern", ["radial", "window", "svg1", "pooled"])
def test_a_cap_wins_over_a_head_at_1(pattern):
    capped = density(a_call(), pattern, Spending(torch.tensor([1.0, 0.5, 1.0]), False, 0.02, 0.4))
    assert max(capped) < 0.6
