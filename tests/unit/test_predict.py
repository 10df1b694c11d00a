"""Predicted seconds: the line through the measured calls, and steps and runs made of it."""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_accel.accel.attention.account.recording import Timing
from dit_accel.accel.attention.profiles.predict import Measured, Prediction, measured, predict, seconds, sparse_call
from dit_accel.tests.support.recordings import NO_TIMING, TIMING


def timed(*sparse: tuple[float, float]) -> Timing:
    return replace(TIMING, sparse=sparse)


def test_calls_on_a_line_give_the_line_back():
    timing = timed((0.1, 0.013), (0.3, 0.019), (0.35, 0.0205), (0.8, 0.034))
    for density in (0.05, 0.3, 1.0):
        assert sparse_call(timing, density) == pytest.approx(0.01 + 0.03 * density)


def test_noise_is_averaged():
    timing = timed((0.2, 0.014), (0.2, 0.016), (0.6, 0.033), (0.6, 0.037))
    assert sparse_call(timing, 0.4) == pytest.approx(0.025)


def test_a_line_has_neither_a_negative_slope_nor_a_negative_intercept():
    assert sparse_call(timed((0.2, 0.03), (0.6, 0.01)), 0.9) == pytest.approx(0.02)
    timing = timed((0.2, 0.01), (0.6, 0.04))
    # Through the origin, with the least squared distance.
    assert sparse_call(timing, 1.0) == pytest.approx((0.2 * 0.01 + 0.6 * 0.04) / (0.2**2 + 0.6**2))
    assert sparse_call(timing, 0.0) == 0


@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(1e-4, 1)), min_size=1, max_size=6))
def test_more_density_never_takes_less_time(points):
    timing = timed(*points)
    times = [sparse_call(timing, density / 10) for density in range(11)]
    assert all(a <= b * (1 + 1e-9) for a, b in pairwise(times))
    assert times[0] >= 0


def test_with_one_density_a_dense_call_is_the_second_point():
    timing = timed((0.25, 0.02), (0.25, 0.02))
    assert sparse_call(timing, 0.25) == pytest.approx(0.02)
    assert sparse_call(timing, 1.0) == pytest.approx(TIMING.dense_call)
    # Not where that says that keeping more takes less time.
    assert sparse_call(timed((0.25, 0.08)), 0.25) == sparse_call(timed((0.25, 0.08)), 0.1) == pytest.approx(0.065)
    assert sparse_call(timed((1.0, 0.06)), 0.5) == pytest.approx(0.055)


def test_a_step_is_its_dense_rest_and_a_call_for_each_layer():
    # 0.5 s with 4 calls of 50 ms: 300 ms of anything else. Sparse calls take 5 ms and 50 ms for what is kept.
    found = predict(TIMING, (0.2, 0.4, 0.6, 0.8))
    assert found.sparse_step == pytest.approx(0.3 + 4 * 0.005 + 0.05 * 2)
    assert found.speed == pytest.approx(0.5 / 0.42)
    assert found.dense_run == pytest.approx(10)
    assert found.sparse_run == pytest.approx(4 * 0.5 + 16 * 0.42)


def test_a_layer_that_keeps_everything_takes_a_dense_call():
    assert predict(TIMING, (1.0,) * 4).sparse_step == pytest.approx(0.5)
    assert predict(TIMING, (1.0, 0.2, 0.2, 0.2)).sparse_step == pytest.approx(0.3 + 0.05 + 3 * 0.015)


def test_a_step_of_two_evaluations_has_two_calls_of_each_layer():
    twice = replace(TIMING, calls=8, dense_step=1.0)
    assert predict(twice, (0.2, 0.4, 0.6, 0.8)).sparse_step == pytest.approx(
        2 * predict(TIMING, (0.5,) * 4).sparse_step
    )


def test_attention_that_was_timed_longer_than_its_step_leaves_no_negative_rest():
    assert predict(replace(TIMING, dense_step=0.1), (0.2,) * 4).sparse_step == pytest.approx(4 * 0.015)


def test_words():
    assert Prediction(4.1, 2.3, 20, 4).words() == (
        "a step takes 4.1 s dense, 2.3 s sparse (1.78x); a run of 20 steps 82 s dense, 53 s with 4 of them dense"
    )
    assert Prediction(4.0, 5.0, 10, 2).words() == (
        "a step takes 4.0 s dense, 5.0 s sparse (0.8x): sparse attention is no faster than dense on this machine; "
        "a run of 10 steps 40 s dense, 48 s with 2 of them dense"
    )


@pytest.mark.parametrize(("value", "text"), [(0.0251, "25 ms"), (0.35, "350 ms"), (4.06, "4.1 s"), (153.2, "153 s")])
def test_seconds(value, text):
    assert seconds(value) == text


def test_without_a_kernel_only_the_dense_times_are_known():
    found = predict(replace(TIMING, problem="no fast kernel for float32"), (0.2,) * 4)
    assert (found.sparse_step, found.sparse_run, found.speed) == (None, None, None)
    assert found.words() == (
        "a step takes 500 ms dense, a run of 20 steps 10 s; no speed here: no fast kernel for float32"
    )


def test_without_measurements_it_says_which_are_missing():
    assert measured(TIMING) == Measured(TIMING.dense_step, TIMING.dense_call, TIMING.calls, TIMING.sparse)
    assert measured(timed()) == "no sparse call could be timed"
    found = predict(NO_TIMING, (0.2,) * 4)
    assert (found.dense_run, found.sparse_run, found.speed) == (None, None, None)
    assert found.words() == (
        "the time of a step is not known: no dense step and no dense attention call and no sparse call could be timed"
    )
