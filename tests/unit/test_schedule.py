"""The dense window in terms of sigma, and the length of a schedule seen in part."""

import itertools
import math

import pytest
import torch

from dit_accel.accel.attention.budget import PRESETS, Budget
from dit_accel.accel.attention.schedule import SigmaWindow, full_steps, percent_of, step_of


def shifted(percent: float, shift: float = 8.0) -> float:
    """A flow schedule with a time shift, as Wan uses it."""
    t = 1 - percent
    return shift * t / (1 + (shift - 1) * t)


def sigmas(steps: int) -> list[float]:
    return [shifted(i / steps) for i in range(steps + 1)]


def sparse_steps(budget: Budget, steps: int) -> list[bool]:
    window = SigmaWindow.of(budget, shifted)
    return [sigma in window for sigma in sigmas(steps)[:-1]]


def test_window_keeps_both_ends_dense():
    budget = Budget(dense_first=0.2, dense_last=0.3)
    assert sparse_steps(budget, 10) == [False] * 2 + [True] * 5 + [False] * 3


def test_no_window_is_always_sparse():
    assert all(sparse_steps(Budget(dense_first=0, dense_last=0), 5))
    assert 1e9 in SigmaWindow.of(Budget(dense_first=0, dense_last=0), shifted)


def test_the_whole_schedule_is_dense_down_to_the_last_sigma():
    assert 1e-6 not in SigmaWindow.of(Budget(dense_first=1.0), shifted)
    assert not any(sparse_steps(Budget(dense_first=1.0), 7))
    assert not any(sparse_steps(Budget(dense_first=0.0, dense_last=1.0), 7))


@pytest.mark.parametrize("steps", [4, 5, 6, 7, 8, 9])
def test_few_step_preset_keeps_exactly_the_first_step_dense(steps):
    assert sparse_steps(PRESETS["few_step"], steps) == [False] + [True] * (steps - 1)


@pytest.mark.parametrize("percent", [0.0, 0.1, 0.5, 0.93, 1.0])
def test_percent_is_the_inverse(percent):
    assert percent_of(shifted(percent), shifted) == pytest.approx(percent, abs=1e-5)


def test_a_slice_tells_the_whole_length():
    whole = sigmas(20)
    assert full_steps(whole, shifted) == 20
    assert full_steps(whole[:11], shifted) == 20
    assert full_steps(whole[10:], shifted) == 20
    assert full_steps([0.5, 0.5], shifted) == 1


# Steps of distilled models, far from evenly spaced.
UNEVEN = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0]


@pytest.mark.parametrize("schedule", [sigmas(20), UNEVEN, [14.6, 6.3, 2.1, 0.4, 0.0]])
def test_an_evaluation_at_a_steps_sigma_belongs_to_it(schedule):
    for step, sigma in enumerate(schedule[:-1]):
        assert step_of(sigma, schedule) == step
        assert step_of(float(torch.tensor(sigma).half()), schedule) == step
        assert step_of(math.exp(math.log(sigma)), schedule) == step


@pytest.mark.parametrize("schedule", [sigmas(20), UNEVEN])
def test_an_evaluation_between_two_belongs_to_the_first(schedule):
    for step, (high, low) in enumerate(itertools.pairwise(schedule)):
        assert step_of((high + low) / 2, schedule) == step
        # Heun's second evaluation stands where the next step begins.
        assert step_of(low, schedule) == min(step + 1, len(schedule) - 2)


def test_steps_closer_than_rounding_are_told_apart():
    schedule = [shifted(i / 200, shift=17.0) for i in range(201)]
    assert 1 - schedule[1] < 1e-3
    assert [step_of(sigma, schedule) for sigma in schedule[:-1]] == list(range(200))


def test_a_sigma_above_or_below_the_schedule():
    schedule = sigmas(4)
    assert step_of(1.7, schedule) == 0, "noise is added before the first evaluation"
    assert step_of(1e-9, schedule) == 3
    assert step_of(0.5, []) == step_of(0.5, [0.5]) == 0


def few_step(schedule: list[float]) -> list[bool]:
    window = SigmaWindow.of(PRESETS["few_step"], shifted, schedule)
    return [sigma in window for sigma in schedule[:-1]]


@pytest.mark.parametrize("schedule", [UNEVEN, sigmas(4), sigmas(8), [1.0, 0.2, 0.0]])
def test_few_step_counts_steps_however_they_are_spaced(schedule):
    assert few_step(schedule) == [False] + [True] * (len(schedule) - 2)


def test_few_step_allows_for_samplers_that_round():
    window = SigmaWindow.of(PRESETS["few_step"], shifted, UNEVEN)
    for sigma in UNEVEN[1:-1]:
        assert math.nextafter(sigma, 1) in window
        assert float(torch.tensor(sigma).half()) in window
    assert 0.9995 * UNEVEN[0] not in window


def test_few_step_over_two_experts_has_one_dense_step():
    first, second = UNEVEN[:5], UNEVEN[4:]
    assert few_step(first) == [False, True, True, True]
    assert few_step(second) == [True] * 4


@pytest.mark.parametrize(("denoise", "begins"), [(0.95, True), (0.85, False), (0.5, False)])
def test_few_step_from_a_picture_is_dense_only_if_it_begins_at_the_beginning(denoise, begins):
    schedule = [shifted(1 - denoise * (1 - i / 4)) for i in range(5)]
    assert few_step(schedule) == [not begins, True, True, True]
