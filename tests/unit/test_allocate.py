"""Budgets from measured curves: optimal where the optimum is known, and what a target promises everywhere."""

import math
import re
from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_accel.accel.attention.account.recording import Recording
from dit_accel.accel.attention.profiles.allocate import UNSEEN, for_error, for_speed, make_profile
from dit_accel.accel.attention.profiles.frontier import PARTS, curves, frontier
from dit_accel.accel.attention.profiles.predict import predict
from dit_accel.accel.attention.profiles.profile import Profile
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.recordings import (
    NO_TIMING,
    TIMING,
    TOP_P,
    falling,
    make_recording,
    mapped,
    random_recording,
)

EVEN = [n / 20 for n in range(1, 20)]
SEEDS = st.integers(0, 10_000)
ERRORS = st.floats(-3, -0.3).map(lambda exponent: 10**exponent)
few = settings(max_examples=40, deadline=None)
fewer = settings(max_examples=15, deadline=None)


def sparse(profile: Profile) -> list[bool]:
    return [min(row) < 1 for row in profile.top_p]


def error_of(recording: Recording, profile: Profile) -> list[float]:
    """The error of each layer, by its definition, at the profile's top_p on the interpolated curves."""
    grid, out = curves(recording), []
    for layer, row in enumerate(profile.top_p):
        roots = []
        for level in grid.error:
            shares = [read(grid.top_p, level[layer, head], p) for head, p in enumerate(row)]
            roots.append(math.sqrt(sum(shares)))
        out.append(sum(roots) / len(roots))
    return out


def read(x: torch.Tensor, y: torch.Tensor, at: float) -> float:
    right = max(1, int((x < at).sum()))
    (x0, x1), (y0, y1) = x[right - 1 : right + 1].tolist(), y[right - 1 : right + 1].tolist()
    return (y0 * (x1 - at) + y1 * (at - x0)) / (x1 - x0)


def test_heads_stop_at_equal_marginal_gains():
    """Squared errors a * exp(-b * density): the cheapest mix of error E has a * b * exp(-b * density) alike in all
    heads, hence squared errors proportional to 1 / b that sum up to E * E."""
    a = torch.tensor([[[1.0, 0.6, 0.4], [0.9, 0.5, 0.8]]])
    b = torch.tensor([[[8.0, 10.0, 6.0], [7.0, 12.0, 9.0]]])
    profile = for_error(falling(a, b, EVEN), 0.1)
    gain = 0.1**2 * 3 / (1 / b[0]).sum(1, keepdim=True)
    expected = (a[0] * b[0] / gain).log() / b[0]
    assert torch.allclose(torch.tensor(profile.top_p), expected, atol=0.05 / PARTS)
    assert profile.density == pytest.approx(expected.mean(1).tolist(), abs=1e-3)


def test_between_candidates_errors_fall_straight_in_the_logarithm():
    recording = falling(torch.tensor([[[0.8]]]), torch.tensor([[[9.0]]]))
    grid = curves(recording)
    inner = grid.top_p <= TOP_P[-1]
    assert torch.allclose(grid.error[0, 0, 0][inner], 0.8 * torch.exp(-9 * grid.top_p[inner]), atol=0)
    assert_close(grid.density[0, 0], grid.top_p, dtype=torch.float32)
    last = grid.error[0, 0, 0][~inner].sqrt() / (1 - grid.top_p[~inner]).clamp(min=1e-300)
    assert_close(last[:-1], last[0].expand_as(last[:-1]), units=64, dtype=torch.float32)
    assert grid.error[0, 0, 0, -1] == 0


def test_a_candidate_that_keeps_everything_leaves_no_error():
    errors = torch.tensor([[[0.1, 0.04, 0.0]]])
    recording = make_recording([(torch.tensor([[[0.2, 0.6, 1.0]]]), errors, torch.ones(1, 1))], (0.5, 0.7, 0.9))
    grid = curves(recording)
    assert torch.isfinite(grid.error).all()
    assert (grid.error.diff(dim=-1) <= 0).all()
    assert for_error(recording, 0.1).density[0] < 1


@few
@given(SEEDS)
def test_curves_of_noisy_measurements_never_turn(seed):
    recording = random_recording(seed, noise=1.0)
    measured = torch.stack([level.error for level in recording.levels])
    grid = curves(recording)
    assert (measured.diff(dim=-1) > 0).any()
    assert (grid.error.diff(dim=-1) <= 0).all()
    assert (grid.density.diff(dim=-1) >= 0).all()
    # The running minimum at the candidates, and nothing else.
    norm = torch.stack([level.norm.sum(1) for level in recording.levels])[..., None, None]
    assert torch.allclose(grid.error[..., :-1:PARTS], (measured / norm).cummin(-1).values, atol=0)


@few
@given(SEEDS, ERRORS, st.floats(0, 1))
def test_an_error_is_never_exceeded_and_never_wasted(seed, error, noise):
    recording = random_recording(seed, noise=noise)
    profile, path = for_error(recording, error), frontier(recording)
    for layer, expected in enumerate(profile.error):
        assert expected <= error
        if path.densest[layer] > error:
            assert set(profile.top_p[layer]) == {1.0}
        elif path.least[layer] > error:
            assert expected >= 0.99 * error
        else:
            assert set(profile.top_p[layer]) == {TOP_P[0]}
    assert profile.error == pytest.approx(error_of(recording, profile), rel=1e-6, abs=1e-9)


def test_the_error_is_the_mean_over_levels_of_the_relative_error_of_a_call():
    start, rate = torch.tensor([[[0.5, 0.2]], [[0.05, 0.3]]]), torch.tensor([[[6.0, 5.0]], [[8.0, 7.0]]])
    recording = falling(start, rate, EVEN)
    # Whatever the units of a level.
    first, second = recording.levels
    recording = replace(recording, levels=(first, replace(second, error=9 * second.error, norm=9 * second.norm)))
    profile = for_error(recording, 0.08)
    p = torch.tensor(profile.top_p)[None]
    truth = (start * torch.exp(-rate * p)).sum(2).div(2).sqrt().mean()
    assert truth.item() == pytest.approx(0.08, rel=0.01)
    assert profile.error[0] == pytest.approx(0.08, rel=0.01)


@few
@given(SEEDS, ERRORS, st.floats(1, 3))
def test_a_tighter_error_never_gives_less_density(seed, error, factor):
    recording = random_recording(seed)
    tight, loose = for_error(recording, error / factor), for_error(recording, error)
    assert all(a >= b - 1e-9 for a, b in zip(tight.density, loose.density, strict=True))


def two_heads(seed: int) -> Recording:
    """One layer, one level, five candidates; curves with kinks, as few sampled rows give them."""
    generator = torch.Generator().manual_seed(seed)
    drops, widths = (torch.rand(1, 2, 5, generator=generator).double() ** 2 + 1e-3 for _ in range(2))
    errors = drops.flip(-1).cumsum(-1).flip(-1)
    density = widths.cumsum(-1) / (widths.sum(-1, keepdim=True) + 0.1)
    return make_recording([(density, errors, torch.full((1, 2), 20.0))], (0.3, 0.5, 0.7, 0.9, 0.95))


@few
@given(SEEDS)
def test_no_mix_of_two_heads_is_better(seed):
    """Whatever a squared error is worth in density, the mix that is best of all is on the path."""
    path = frontier(two_heads(seed))
    first, second = path.curves.density[0]
    density = (first[:, None] + second) / 2
    first, second = path.curves.error[0, 0]
    error = first[:, None] + second
    for worth in torch.logspace(-3, 4, 50).tolist():
        best = (density + worth * error).argmin()
        root = error.flatten()[best].sqrt().item() + 1e-9
        assert path.at(path.position(root))[0].item() == pytest.approx(density.flatten()[best].item(), abs=1e-6)


@few
@given(SEEDS)
def test_no_pair_of_candidates_is_better(seed):
    """Brute force over all pairs, where curves are convex."""
    generator = torch.Generator().manual_seed(seed)
    start, rate = torch.rand(1, 1, 2, generator=generator), 8 + 20 * torch.rand(1, 1, 2, generator=generator)
    recording = falling(start, rate, (0.2, 0.3, 0.4, 0.5, 0.6))
    (level,), path = recording.levels, frontier(recording)
    for i, j in product(range(5), repeat=2):
        asked = ((level.error[0, 0, i] + level.error[0, 1, j]) / 2).sqrt().item()
        mine, _ = path.at(path.position(asked * (1 + 1e-9)))
        assert mine[0] <= (level.density[0, 0, i] + level.density[0, 1, j]) / 2 + 1e-6


def test_layers_out_of_reach_keep_everything_and_are_counted():
    start, rate = torch.full((1, 3, 2), 0.5), torch.tensor([1.0, 8.0, 30.0])[None, :, None].expand(1, 3, 2)
    recording = falling(start, rate)
    profile = for_error(recording, 0.05)
    assert profile.top_p[0] == (1.0, 1.0)
    assert (profile.density[0], profile.error[0]) == (1.0, 0.0)
    assert profile.met
    assert "1 of 3 layers keep everything: even top_p 0.95 leaves them an error above 0.05" in profile.note
    assert profile.top_p[2] == (TOP_P[0],) * 2
    assert "1 of 3 layers stay below the error 0.05 with the least budget measured" in profile.note
    assert sparse(profile) == [False, True, True]


def test_an_error_that_leaves_nothing_sparse_is_not_met():
    profile = for_error(random_recording(0), 1e-6)
    assert not profile.met
    assert profile.density == (1.0,) * 3
    assert "3 of 3 layers keep everything" in profile.note


def test_the_profile_says_what_it_was_made_of():
    profile = for_error(random_recording(0), 0.2)
    assert (profile.pattern, profile.model, profile.layers, profile.heads) == ("svg2", "WanModel", (0, 1, 2), 4)
    assert (profile.floor, profile.target, profile.target_value) == (0.05, "error", 0.2)
    assert profile.note.endswith(predict(TIMING, profile.density).words())


def test_a_layer_without_output_has_no_error():
    recording = mapped(random_recording(0), lambda level: replace(level, error=0 * level.error, norm=0 * level.norm))
    assert for_error(recording, 0.05).error == (0.0,) * 3


SPEEDS = st.floats(1.01, 3)
TIMINGS = st.tuples(st.floats(0.001, 0.06), st.floats(0.001, 0.06), st.floats(0.2, 0.5)).map(
    lambda t: replace(TIMING, sparse=((0.2, t[0]), (0.6, t[0] + t[1])), dense_step=t[2])
)


def test_a_speed_is_met_with_one_error_for_all_layers():
    recording = random_recording(1)
    profile = for_speed(recording, 1.3)
    assert (profile.met, profile.target, profile.target_value) == (True, "speed", 1.3)
    assert predict(TIMING, profile.density).speed == pytest.approx(1.3, rel=1e-3)
    errors = [error for error, row in zip(profile.error, profile.top_p, strict=True) if TOP_P[0] < max(row) < 1]
    assert len(errors) == 3
    assert errors == pytest.approx([errors[0]] * 3, rel=0.01)
    assert profile.note.startswith(f"1.3x costs an error of {errors[0]:.2g} in each layer")
    assert profile.density == pytest.approx(for_error(recording, max(errors)).density, rel=1e-3)


@fewer
@given(SEEDS, SPEEDS, TIMINGS)
def test_a_speed_that_is_met_is_met(seed, speed, timing):
    recording = random_recording(seed, timing=timing)
    profile = for_speed(recording, speed)
    if profile.met:
        assert predict(timing, profile.density).speed >= speed
    elif "no speed" not in profile.note:
        assert all(set(row) in ({TOP_P[0]}, {1.0}) for row in profile.top_p)


@fewer
@given(SEEDS, SPEEDS, st.floats(1, 2), TIMINGS)
def test_more_speed_never_gives_more_density(seed, speed, factor, timing):
    recording = random_recording(seed, timing=timing)
    slow, fast = for_speed(recording, speed), for_speed(recording, speed * factor)
    assert all(a >= b - 1e-9 for a, b in zip(slow.density, fast.density, strict=True))


def test_a_speed_out_of_reach_gives_the_fastest_profile_and_its_speed():
    profile = for_speed(random_recording(1), 9)
    assert not profile.met
    assert {p for row in profile.top_p for p in row} == {TOP_P[0]}
    best = predict(TIMING, profile.density).speed
    assert profile.note.startswith(f"9x is out of reach: the least budget measured brings {best:.3g}x, with errors up")


def test_layers_that_sparse_calls_would_slow_down_keep_everything():
    """Faster than dense below a density of 0.5 only."""
    timing = replace(TIMING, sparse=((0.3, 0.03), (0.5, 0.05)))
    start, rate = torch.tensor([0.05, 0.1, 0.1, 0.1]), torch.tensor([2.0, 6.0, 8.0, 30.0])
    start, rate = (values[None, :, None].expand(1, 4, 2) for values in (start, rate))
    recording = falling(start, rate, timing=timing)
    profile = for_speed(recording, 1.1)
    # The first layer has the error of the others at a density between: it is slow, not out of reach.
    assert 0.5 < for_error(recording, max(profile.error)).density[0] < 1
    assert profile.met
    assert all(density < 0.5 or density == 1 for density in profile.density)
    assert profile.density[0] == 1
    assert "layers keep everything" in profile.note


@pytest.mark.parametrize(
    ("timing", "reason"),
    [
        (replace(TIMING, problem="no fast kernel for float32"), "no fast kernel for float32"),
        (replace(TIMING, sparse=()), "no sparse call could be timed"),
        (NO_TIMING, "no dense step and no dense attention call and no sparse call could be timed"),
        (
            replace(TIMING, sparse=((0.2, 0.08), (0.6, 0.1))),
            r"a sparse call of density 0\.\d\d takes \d+ ms, a dense one 50 ms",
        ),
    ],
)
def test_where_sparse_brings_no_speed_the_profile_is_for_the_usual_error(timing, reason):
    recording = random_recording(1, timing=timing)
    profile = for_speed(recording, 1.8)
    usual = for_error(recording, 0.05)
    assert (profile.met, profile.target, profile.target_value) == (False, "speed", 1.8)
    assert profile.top_p == usual.top_p
    assert re.fullmatch(
        f"sparse attention brings no speed here: {reason}; this profile is for the error 0.05", profile.note
    )


@pytest.mark.parametrize("value", [0, 1.5, float("nan")])
def test_an_error_that_makes_no_sense_is_refused(value):
    with pytest.raises(ValueError, match="target_value: expected an error above 0 and up to 1, found"):
        for_error(random_recording(0), value)


@pytest.mark.parametrize("value", [1, -2, float("inf")])
def test_a_speed_that_makes_no_sense_is_refused(value):
    with pytest.raises(ValueError, match="target_value: expected a finite factor above 1, found"):
        for_speed(random_recording(0), value)


def test_densities_fall_as_errors_grow_all_along_the_path():
    path = frontier(random_recording(5))
    assert all((a >= b).all() for b, a in pairwise(path.density.T))
    assert (path.error.diff(dim=-1) <= 0).all()
    assert path.density[:, -1].tolist() == pytest.approx([1.0] * 3)


def test_a_profile_leaves_a_margin_for_other_prompts():
    recording = random_recording(1)
    profile = make_profile(recording, "error", 0.1)
    assert (profile.target, profile.target_value) == ("error", 0.1)
    assert max(profile.error) <= 0.1 / UNSEEN < 0.1
    plain = for_error(recording, 0.1 / UNSEEN)
    assert replace(profile, note="") == replace(plain, target_value=0.1, note="")
    assert "above 0.0001 with its margin" in make_profile(recording, "error", 0.0001).note
    assert make_profile(recording, "speed", 1.2) == for_speed(recording, 1.2)
    with pytest.raises(ValueError, match=r"target_value: expected an error above 0 and up to 1, found 1\.1"):
        make_profile(recording, "error", 1.1)
