"""Quantised chunks: the codes of every row, in the place where the attention kernel looks for them."""

import pytest
import torch

from dit_accel.kernels.gather import CHUNK, TALL, chunk_layout
from dit_accel.kernels.quantise import FP8, INT8, LARGEST, Formats, key_shift, quantise_chunks, value_steps
from dit_accel.tests.support.closeness import assert_close

SIZES = [[17, 0, 1, 16, 40, 15, 0, 44], [0, 100, 1, 1, 1, 14, 16, 0]]


def quantise(problem, formats, backend, chunk=CHUNK):
    plan = problem.plan
    _, start, live = chunk_layout(plan["key_offsets"], problem.k.shape[2], chunk)
    chunks = quantise_chunks(
        problem.k,
        problem.v,
        plan["key_tokens"],
        plan["key_index"],
        start,
        live,
        chunk,
        shift=key_shift(problem.k),
        steps=value_steps(problem.v),
        formats=formats,
        backend=backend,
    )
    return chunks, start, live


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("formats", [Formats(INT8, FP8), Formats(FP8, FP8), Formats(INT8, None), Formats(None, FP8)])
@pytest.mark.parametrize("chunk", [CHUNK, TALL])
def test_every_row_is_where_its_chunk_says(make_problem, formats, backend, chunk):
    problem = make_problem(SIZES, SIZES, batch=2, heads=3, packed=True)
    shift, steps = key_shift(problem.k), value_steps(problem.v)
    (keys, key_steps, values), start, live = quantise(problem, formats, backend, chunk)
    if formats.values is not None:
        values = (values.float() * steps[:, :, None, :, None]).transpose(3, 4).flatten(2, 3)
    keys = keys.float() if key_steps is None else keys.float() * key_steps[..., None]
    # Half a step of INT8, half of the last of three mantissa bits of FP8.
    key_error = {INT8: 0.5 / 127, FP8: 16 / 448, None: 1e-6}[formats.keys]
    value_error = 0 if formats.values is None else 1 / 16
    for b in range(2):
        for h in range(3):
            order = problem.plan["key_index"][b, h]
            tokens = problem.plan["key_tokens"][order].long()
            for number, (first, count) in enumerate(zip(start[order].tolist(), live[order].tolist(), strict=True)):
                rows = slice(number * chunk, number * chunk + count)
                members = tokens[first : first + count]
                exact = problem.k[b, h, members] - shift[b, h]
                wrong = (keys[b, h, rows] - exact).abs()
                assert (wrong <= (key_error * 1.001) * exact.abs().amax(-1, keepdim=True)).all()
                exact = problem.v[b, h, members]
                bound = value_error * exact.abs() + steps[b, h] * 2**-9
                assert ((values[b, h, rows] - exact).abs() <= (bound if formats.values else 0)).all()
                padding = slice(rows.stop, (number + 1) * chunk)
                assert (keys[b, h, padding] == 0).all() and (values[b, h, padding] == 0).all()


@pytest.mark.parametrize("formats", [Formats(INT8, FP8), Formats(FP8, FP8)])
def test_the_kernel_rounds_as_the_reference_does(make_problem, formats):
    problem = make_problem(SIZES, SIZES, heads=3, dim=128)
    (keys, key_steps, values), _, _ = quantise(problem, formats, "triton")
    (expected, expected_steps, expected_values), _, _ = quantise(problem, formats, "reference")
    assert_close(key_steps, expected_steps)
    # A sum in another order may decide a tie the other way.
    assert (keys.float() != expected.float()).float().mean() < 1e-3
    assert (values.float() != expected_values.float()).float().mean() < 1e-3


@pytest.mark.parametrize("backend", ["triton", "reference"])
def test_codes_use_the_whole_range(make_problem, backend):
    problem = make_problem(SIZES[:1], SIZES[:1])
    for formats in (Formats(INT8, FP8), Formats(FP8, FP8)):
        (keys, _, values), _, live = quantise(problem, formats, backend)
        rows = (torch.arange(CHUNK) < live[..., None]).flatten()
        assert (keys.float().abs().amax(-1)[:, :, rows] == LARGEST[formats.keys]).all()
        assert (values.float().abs().amax((2, 4)) == LARGEST[FP8]).all()


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("value", [0.0, 1e-40, 3.0, 60000.0])
def test_constant_tokens(make_problem, backend, value):
    problem = make_problem(SIZES[:1], SIZES[:1])
    problem.k[:], problem.v[:] = value, value
    (keys, key_steps, values), _, _ = quantise(problem, Formats(INT8, FP8), backend)
    for part in (keys, key_steps, values):
        assert torch.isfinite(part.float()).all()
