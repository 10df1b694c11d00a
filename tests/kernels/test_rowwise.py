"""Rows at 8 bits and integer sums scaled back, on shapes that divide nothing."""

import pytest
import torch

from dit_accel.kernels.quantise import FP8, INT8, LARGEST
from dit_accel.kernels.rowwise import quantise_rows, scale_sums
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.interpreter import maxima_as_hardware_takes_them  # noqa: F401

BACKENDS = ["triton", "reference"]


def rows_of(rows, columns, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=random) * 10 ** (6 * torch.rand(rows, 1, generator=random) - 3)
    return x.half(), (10 ** (2 * torch.rand(columns, generator=random) - 1)).half()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("codes_dtype", [INT8, FP8])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (3, 80), (7, 1088), (2, 5120)])
@pytest.mark.parametrize("smoothed", [True, False])
def test_codes_are_as_near_as_8_bits_allow(backend, codes_dtype, rows, columns, smoothed):
    x, smooth = rows_of(rows, columns)
    codes, steps = quantise_rows(x, smooth if smoothed else None, codes_dtype, backend=backend)
    exact = x.double() / smooth.double() if smoothed else x.double()
    wrong = (codes.double() * steps.double()[:, None] - exact).abs()
    largest = exact.abs().amax(1, keepdim=True)
    # Half a step of INT8; half of the last of three mantissa bits of FP8, or half of its smallest step.
    bound = largest * 0.5 / 127 if codes_dtype == INT8 else exact.abs() / 16 + largest / 448 * 2**-10
    assert (wrong <= bound * 1.001).all()
    assert (codes.float().abs().amax(1) == LARGEST[codes_dtype]).all()


def test_a_view_with_longer_rows_and_a_row_of_zeros():
    whole, smooth = rows_of(5, 256)
    x = whole[:, 64:192]
    x[2] = 0
    for codes_dtype in (INT8, FP8):
        results = [quantise_rows(x, smooth[64:192], codes_dtype, backend=backend) for backend in BACKENDS]
        (codes, steps), (expected, expected_steps) = results
        assert torch.equal(codes.float(), expected.float())
        assert_close(steps, expected_steps, units=2)
        assert steps[2] == 0 and (codes[2].float() == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (5, 7), (4, 512), (9, 1500)])
@pytest.mark.parametrize("biased", [True, False])
def test_sums_are_scaled(backend, rows, columns, biased):
    random = torch.Generator().manual_seed(0)
    sums = torch.randint(-(2**26), 2**26, (rows, columns + 3), dtype=torch.int32, generator=random)[:, :columns]
    row_steps, column_steps = (torch.rand(n, generator=random) * 1e-3 for n in (rows, columns))
    bias = torch.randn(columns, generator=random) if biased else None
    out = scale_sums(sums, row_steps, column_steps, bias, torch.float16, backend=backend)
    exact = sums.double() * row_steps.double()[:, None] * column_steps.double()
    exact = exact if bias is None else exact + bias.double()
    assert_close(out, exact, units=1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("maxima_as_hardware_takes_them")
@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value")
@pytest.mark.parametrize("codes", [INT8, FP8])
def test_a_nan_or_infinity_in_a_row_of_a_linear_layer_makes_its_result_nan(backend, codes):
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(0)).half()
    x[2, 30], x[3] = torch.inf, torch.nan
    _, steps = quantise_rows(x, None, codes, backend=backend)
    assert steps.isnan().tolist() == [False, False, True, True]
    out = scale_sums(torch.ones(4, 8, dtype=torch.int32), steps, torch.ones(8), None, torch.float16, backend=backend)
    assert out.isnan().all(1).tolist() == out.isnan().any(1).tolist() == [False, False, True, True]
