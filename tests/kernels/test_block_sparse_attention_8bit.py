"""8-bit block-sparse attention against dense fp64 attention, and the kernel against the reference."""

from pathlib import Path

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.executor import execute
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.bench.inputs import captured_inputs
from dit_accel.kernels.block_sparse_attention import block_sparse_attention
from dit_accel.kernels.quantise import FP8, INT8, Formats
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.closeness import distance

CAPTURE = Path(__file__).parents[1] / "golden" / "small_capture.safetensors"
UNEVEN_QUERIES = [[1, 70, 0, 33, 29], [50, 0, 50, 1, 32]]
UNEVEN_KEYS = [[17, 0, 1, 16, 40, 15, 0, 44], [0, 100, 1, 1, 1, 14, 16, 0]]

# Relative L2 that the rounding may cost. Three mantissa bits are few for the logits of a head that looks sharply.
BARS = {
    Formats(INT8, None): 2e-2,
    Formats(INT8, FP8): 5e-2,
    Formats(None, FP8): 5e-2,
    Formats(FP8, FP8): 9e-2,
}
all_formats = pytest.mark.parametrize("formats", BARS, ids=lambda f: "+".join(str(name)[6:11] for name in f))
both_backends = pytest.mark.parametrize("backend", ["triton", "torch", "reference"])


def relative(out, expected) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.spread(2)
@all_formats
@both_backends
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
def test_uneven_blocks_orders_per_head_and_batch(make_problem, formats, backend, tail, dim):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, batch=2, heads=3, dim=dim, tail=tail, packed=True)
    out, lse = problem.run(block_sparse_attention, formats=formats, backend=backend)
    expected, expected_lse = problem.dense()
    assert out.dtype == problem.q.dtype and out.transpose(1, 2).is_contiguous()
    assert relative(out, expected) <= BARS[formats]
    assert distance(lse, expected_lse) <= 0.04


@pytest.mark.spread(1)
@all_formats
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_kernel_computes_what_the_reference_does(make_problem, formats, tail, dtype):
    """All but the attention weights' own rounding, which the reference leaves out, is the same."""
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, heads=3, dim=128, tail=tail, dtype=dtype)
    (out, lse), (expected, expected_lse) = (
        problem.run(block_sparse_attention, formats=formats, backend=backend) for backend in ("triton", "reference")
    )
    rounding = 1e-6 if dtype == torch.float32 else 1e-3
    assert relative(out, expected) <= (rounding if formats.values is None else 0.025)
    # A product that falls between two codes may be rounded either way.
    assert distance(lse, expected_lse) <= 1e-3


def cost_on_captures(captures, pattern, formats, backend):
    for inputs in captures:
        q, k, v = (x.float() for x in inputs[:3])
        call = make_call(q, k, v, inputs.layout)
        plan = PATTERNS[pattern].plan(call, Budget(top_p=0.8).spending())
        assert plan.density() < 0.9
        exact = execute(q, k, v, plan, scale=call.scale, backend="reference")
        out = execute(q, k, v, plan, scale=call.scale, formats=formats, backend=backend)
        yield relative(out, exact)


@pytest.mark.spread(1)
@all_formats
@pytest.mark.parametrize("pattern", ["svg2", "svg_ear", "pooled"])
def test_what_it_costs_on_captures(formats, pattern):
    costs = list(cost_on_captures(captured_inputs(CAPTURE), pattern, formats, "reference"))
    assert costs and max(costs) <= BARS[formats]


@all_formats
def test_what_the_kernel_costs_on_a_capture(formats):
    """With the weights' own rounding. One head: the interpreter is slow."""
    one = captured_inputs(CAPTURE)[0]
    one = one._replace(**{name: getattr(one, name)[:, :1] for name in "qkv"})
    (cost,) = cost_on_captures([one], "svg2", formats, "triton")
    assert cost <= BARS[formats]


@all_formats
@both_backends
def test_a_shift_of_all_keys_costs_nothing(make_problem, formats, backend):
    """Without the mean taken off first, keys around 100 would leave nothing of their differences at 8 bits."""
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, heads=3)
    problem.k += 100 * torch.randn(64, generator=torch.Generator().manual_seed(5))
    out, lse = problem.run(block_sparse_attention, formats=formats, backend=backend)
    expected, expected_lse = problem.dense()
    assert relative(out, expected) <= BARS[formats]
    assert distance(lse, expected_lse) <= 1e-3


@all_formats
@both_backends
def test_a_query_that_sees_nothing_gets_zero_and_minus_infinity(make_problem, formats, backend):
    keep = torch.rand(1, 2, 5, 8, generator=torch.Generator().manual_seed(2)) < 0.5
    keep[:, :, 1] = False
    problem = make_problem(UNEVEN_QUERIES[:1], UNEVEN_KEYS[:1], keep=keep)
    out, lse = problem.run(block_sparse_attention, formats=formats, backend=backend)
    blind = ~problem.token_mask().any(-1)
    assert blind.any() and (out[blind] == 0).all() and (lse[blind] == -torch.inf).all()
    assert relative(out[~blind], problem.dense()[0][~blind]) <= BARS[formats]


@all_formats
@both_backends
def test_a_tail_alone_answers_a_query_that_keeps_nothing(make_problem, formats, backend):
    keep = torch.zeros(1, 2, 5, 8, dtype=torch.bool)
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, keep=keep, tail=True)
    out, _ = problem.run(block_sparse_attention, formats=formats, backend=backend)
    assert relative(out, problem.dense()[0]) <= BARS[formats]


@pytest.mark.spread(1)
@all_formats
@both_backends
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_overflows(make_problem, formats, backend, dtype):
    """Huge norms, an outlier channel, rows of zeros, constant tokens, the largest fp16 numbers."""
    largest = torch.finfo(torch.float16).max
    for disturb in (
        lambda p: (p.q.mul_(1000), p.k.mul_(1000)),
        lambda p: p.k[..., 3].fill_(largest),
        lambda p: (p.q.zero_(), p.k.zero_(), p.v.zero_()),
        lambda p: (p.q.fill_(2), p.k.fill_(-3), p.v.fill_(largest)),
        lambda p: (p.k[:, :, ::2].fill_(largest), p.k[:, :, 1::2].fill_(-largest), p.q.fill_(largest)),
    ):
        problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, dtype=dtype, tail=True)
        disturb(problem)
        problem.plan["tail"] = problem.pool()
        out, _ = problem.run(block_sparse_attention, formats=formats, backend=backend)
        assert torch.isfinite(out).all()
        low, high = problem.v.amin(2, keepdim=True), problem.v.amax(2, keepdim=True)
        slack = 0.04 * torch.maximum(low.abs(), high.abs()) if formats.values else 1e-2 * high.abs()
        assert ((out >= low - slack) & (out <= high + slack)).all(), "outside of what the values span"
