"""The dense window in terms of sigma, and the length of a schedule seen in part."""

import pytest

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.schedule import SigmaWindow, full_steps, percent_of


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
    from dit_accel.accel.attention.budget import PRESETS

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
