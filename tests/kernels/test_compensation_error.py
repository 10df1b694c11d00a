"""The error of a pooled stand-in: both backends against its definition, block by block, in fp64."""

import pytest
import torch

from dit_accel.kernels.block_mean import block_mean
from dit_accel.kernels.compensation_error import log_compensation_error
from dit_accel.tests.support.closeness import assert_close, distance

pytestmark = pytest.mark.parametrize("backend", ["triton", "torch", "reference"])

SIZES = [[17, 0, 1, 16, 40, 15, 0, 44], [0, 100, 1, 1, 1, 14, 16, 0]]


def run(problem, queries, backend, scale=None):
    order = problem.plan["key_tokens"], problem.plan["key_offsets"], problem.plan["key_index"]
    means = [block_mean(x, *order, backend="reference") for x in (problem.k, problem.v)]
    scale = problem.scale if scale is None else scale
    found = log_compensation_error(queries, problem.k, problem.v, *order, *means, scale=scale, backend=backend)
    return found, definition(problem, queries, *means, scale)


def definition(problem, queries, key_means, value_means, scale):
    tokens, offsets, index = (problem.plan[f"key_{name}"] for name in ("tokens", "offsets", "index"))
    batch, heads, rows, _ = queries.shape
    out = torch.full((batch, heads, rows, offsets.shape[1] - 1), -torch.inf, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            q = queries[b, h].double() * scale
            for j in range(offsets.shape[1] - 1):
                order = int(index[b, h])
                members = tokens[order, offsets[order, j] : offsets[order, j + 1]].long()
                if len(members):
                    exact = (q @ problem.k[b, h, members].double().T).exp()[..., None] * problem.v[
                        b, h, members
                    ].double()
                    pooled = (q @ key_means[b, h, j].double()).exp()[:, None, None] * value_means[b, h, j].double()
                    out[b, h, :, j] = (exact - pooled).square().sum((1, 2)).log()
    return out


@pytest.mark.parametrize("dim", [64, 128])
def test_equals_its_definition(make_problem, backend, dim):
    problem = make_problem([[133]], SIZES, batch=2, heads=3, dim=dim, packed=True)
    queries = torch.randn(2, 3, 50, dim, generator=torch.Generator().manual_seed(7))
    found, expected = run(problem, queries, backend)
    # A block of one token is its own mean: its error is zero but for rounding.
    several = problem.plan["key_offsets"].diff(dim=1)[problem.plan["key_index"]][:, :, None].expand(found.shape) > 1
    assert distance(found[several], expected[several]) <= 1e-4
    assert (found[~several] < found[several].min() - 5).all()


def test_huge_scores_do_not_overflow(make_problem, backend):
    problem = make_problem([[133]], SIZES)
    queries = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(7))
    found, expected = run(problem, queries, backend, scale=4.0)
    finite = torch.isfinite(expected) & (expected > -20)
    if backend == "torch":  # what is less beside the largest of its row counts as zero
        finite &= expected > expected.amax(-1, keepdim=True) - 70
    assert finite.any() and expected[finite].max() > 60
    assert distance(found[finite], expected[finite]) <= 3e-4


def test_half_precision(make_problem, backend):
    problem = make_problem([[133]], SIZES, dtype=torch.float16)
    queries = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(7)).half()
    found, expected = run(problem, queries, backend)
    several = problem.plan["key_offsets"].diff(dim=1)[problem.plan["key_index"]][:, :, None].expand(found.shape) > 1
    assert distance(found[several], expected[several]) <= 2e-3


def test_blocks_may_start_behind_tokens_that_belong_to_none(make_problem, backend):
    """A planner leaves the text out: it comes first in the order, before the first block."""
    problem = make_problem([[133]], SIZES[:1])
    queries = torch.randn(1, 2, 9, 64, generator=torch.Generator().manual_seed(7))
    whole, _ = run(problem, queries, backend)
    problem.plan["key_offsets"] = problem.plan["key_offsets"][:, 2:]
    part, _ = run(problem, queries, backend)
    # Where the error is zero but for rounding, only that it is small can be said.
    assert_close(part.clamp(min=-15), whole[..., 2:].clamp(min=-15), units=8)
