"""A NaN stays one: it reaches all that depends on it and nothing else, in the references and in the kernels.

The kernels run with maxima that drop NaN, as hardware takes them.
"""

import pytest
import torch

from dit_accel.kernels.block_sparse_attention import block_sparse_attention
from dit_accel.kernels.compensation_error import log_compensation_error
from dit_accel.kernels.quantise import FP8, INT8, Formats, key_shift
from dit_accel.kernels.row_attention import row_attention
from dit_accel.tests.support.interpreter import maxima_as_hardware_takes_them  # noqa: F401

pytestmark = [
    pytest.mark.usefixtures("maxima_as_hardware_takes_them"),
    # The maximum of nothing but NaN, and NaN as an integer, which is any: its step says that it is none.
    pytest.mark.filterwarnings("ignore:All-NaN", "ignore:invalid value"),
    pytest.mark.parametrize("backend", ["triton", "torch", "reference"]),
]
QUERIES, KEYS = [[1, 18, 0, 14]], [[17, 0, 1, 16, 6]]
# Query block 0 sees key blocks 0 and 3, block 1 sees 2 alone, block 3 sees nothing.
KEEP = torch.zeros(1, 2, 4, 5, dtype=torch.bool)
KEEP[:, :, 0, [0, 3]] = KEEP[:, :, 1, 2] = True
FORMATS = [None, Formats(INT8, None), Formats(INT8, FP8), Formats(None, FP8), Formats(FP8, FP8)]
all_formats = pytest.mark.parametrize(
    "formats", FORMATS, ids=lambda f: "16" if f is None else "+".join(str(x)[6:11] for x in f)
)


def token_of(problem, side, block):
    """The first token of a block."""
    start = problem.plan[f"{side}_offsets"][0, block]
    return int(problem.plan[f"{side}_tokens"][0, start])


def check(problem, formats, backend, expected):
    """expected: bool [B, H, Nq], the queries that meet a NaN."""
    assert expected.any() and not expected.all()
    out, lse = problem.run(block_sparse_attention, formats=formats, backend=backend)
    assert torch.equal(lse.isnan(), expected)
    assert torch.equal(out.isnan().all(-1), expected) and torch.equal(out.isnan().any(-1), expected)
    blind = ~problem.token_mask().any(-1)
    if "tail" not in problem.plan:
        assert blind.any() and (out[blind] == 0).all() and (lse[blind] == -torch.inf).all()


@pytest.mark.spread(2)
@all_formats
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_query_that_meets_a_nan_key_gets_nan_and_no_other_does(make_problem, backend, formats, dtype, value):
    """At 8 bits no sum over all keys spreads it: token 0 is one of those that the shift is taken from."""
    problem = make_problem(QUERIES, KEYS, keep=KEEP, dtype=dtype)
    problem.plan["key_tokens"] = torch.arange(40, dtype=torch.int32)[None]
    problem.q.abs_()  # q . inf is inf and no -inf, which would only be skipped
    problem.k[:, 1, 0, 3] = value
    expected = problem.token_mask()[..., 0]
    expected[:, 0] = False
    check(problem, formats, backend, expected)


@pytest.mark.spread(2)
@all_formats
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("numbers", [slice(5, 6), slice(None)], ids=["one number", "the whole row"])
def test_a_nan_query_gets_nan_unless_it_sees_nothing(make_problem, backend, formats, dtype, numbers):
    problem = make_problem(QUERIES, KEYS, keep=KEEP, dtype=dtype)
    seeing, blind = token_of(problem, "query", 1), token_of(problem, "query", 3)
    problem.q[:, 0, [seeing, blind], numbers] = torch.nan
    expected = torch.zeros(1, 2, 33, dtype=torch.bool)
    expected[:, 0, seeing] = True
    check(problem, formats, backend, expected)


@all_formats
def test_a_nan_stand_in_reaches_the_queries_that_do_not_keep_its_block(make_problem, backend, formats):
    problem = make_problem(QUERIES, KEYS, keep=KEEP, tail=True)
    problem.plan["tail"].keys[:, :, 3, 7] = torch.nan
    keeps = problem.kept_blocks()[..., 3]
    check(problem, formats, backend, ~keeps)


@all_formats
def test_a_nan_value_reaches_its_channel(make_problem, backend, formats):
    problem = make_problem(QUERIES, KEYS, keep=KEEP, dtype=torch.float16)
    problem.v[:, 1, token_of(problem, "key", 2), 9] = torch.nan
    out, lse = problem.run(block_sparse_attention, formats=formats, backend=backend)
    met = problem.token_mask()[..., token_of(problem, "key", 2)]
    met[:, 0] = False
    assert out[..., 9][met].isnan().all() and not lse.isnan().any()
    others = torch.cat([out[..., :9], out[..., 10:]], dim=-1)
    assert not others.isnan().any() and not out[:, 0].isnan().any()


def test_one_nan_key_does_not_move_the_shift_of_all(make_problem, backend):
    problem = make_problem(QUERIES, KEYS)
    problem.k[:, :, 0, 4] = torch.nan
    shift = key_shift(problem.k)
    assert torch.isfinite(shift).all() and (shift[..., 4] == 0).all() and (shift[..., :4] != 0).all()


def test_exact_rows_that_meet_a_nan_are_nan(make_problem, backend):
    problem = make_problem([[1100]], [[1100]])  # more than one part of the kernel
    rows = problem.q[:, :, :16].clone()
    rows[:, 0, 5, 1] = torch.nan
    problem.k[:, 1, 1090, 2] = torch.nan
    for found in row_attention(rows, problem.k, problem.v, scale=0.1, backend=backend):
        found = found.flatten(3) if found.ndim == 4 else found[..., None]
        assert found[:, 0, 5].isnan().all() and found[:, 1].isnan().all()
        assert not found[:, 0, [0, 4, 6, 15]].isnan().any()


def test_a_nan_is_no_compensation_error_of_zero(make_problem, backend):
    problem = make_problem(QUERIES, KEYS)
    tail, plan = problem.pool(), problem.plan
    order = plan["key_tokens"], plan["key_offsets"], plan["key_index"]
    problem.k[:, :, token_of(problem, "key", 3), 7] = torch.nan
    found = log_compensation_error(
        problem.q[:, :, :16].contiguous(),
        problem.k,
        problem.v,
        *order,
        tail.keys,
        tail.values,
        scale=0.1,
        backend=backend,
    )
    assert found[..., 3].isnan().all() and not found[..., [0, 1, 2, 4]].isnan().any()
