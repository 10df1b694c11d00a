"""What tests stand on: the measure of closeness, and the choice of the fast tier."""

from itertools import combinations, product

import numpy as np
import pytest
import torch

from dit_accel.tests.support.closeness import assert_close, distance
from dit_accel.tests.support.tiers import spread

EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e20])
def test_a_difference_is_measured_against_the_largest_number(size):
    expected = torch.tensor([1.0, -0.1, 0.0]) * size
    found = expected + torch.tensor([0.0, 4 * EPS, 0.0]) * size
    assert distance(found, expected) == pytest.approx(4 * EPS, rel=0.3)
    assert_close(found, expected, units=6)
    with pytest.raises(AssertionError, match=r"latent: .* roundings of torch.float32; at most 2 are allowed"):
        assert_close(found, expected, units=2, what="latent")


def test_the_coarser_dtype_counts():
    exact = torch.linspace(0.1, 1, 9, dtype=torch.float64)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert_close(exact.to(dtype), exact, units=0.5)
        assert_close(exact, exact.to(dtype), units=0.6)
    with pytest.raises(AssertionError):
        assert_close(exact.float(), exact, dtype=torch.float64)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_close_to_nothing_but_its_own_infinity(bad):
    plain, spoilt = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    assert distance(spoilt, plain) == distance(plain, spoilt) == distance(-spoilt, spoilt) == torch.inf
    assert distance(spoilt, spoilt) == (torch.inf if bad != bad else 0)


def test_zeros_nothing_and_other_shapes():
    assert distance(torch.zeros(2), np.zeros(2)) == 0 and distance(torch.ones(2), torch.zeros(2)) == torch.inf
    assert distance(torch.ones(0, 3), torch.ones(0, 3)) == 0
    with pytest.raises(AssertionError, match=r"expected shape \(1, 2\), found \(2,\)"):
        distance(torch.ones(2), torch.ones(1, 2))


@pytest.mark.parametrize("sizes", [(3,), (4, 2, 2, 2), (5, 6, 2)])
def test_the_fast_tier_has_each_value_or_each_pair(sizes):
    rows = list(product(*map(range, sizes)))
    for strength, most in ((1, max(sizes)), (2, 1.3 * np.prod(sorted(sizes)[-2:]))):
        chosen = [rows[place] for place in spread(rows, strength)]
        for columns in combinations(range(len(sizes)), min(strength, len(sizes))):
            assert {tuple(row[c] for c in columns) for row in rows} == {
                tuple(row[c] for c in columns) for row in chosen
            }
        assert len(chosen) <= most
