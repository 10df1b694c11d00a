"""Block-sparse attention: both backends against dense fp64 attention under the expanded token mask."""

import pytest
import torch

from dit_accel.kernels import block_sparse_attention as module
from dit_accel.kernels.block_sparse_attention import block_sparse_attention
from dit_accel.kernels.quantise import FP8, INT8, Formats
from dit_accel.tests.support.closeness import assert_close, distance

pytestmark = pytest.mark.parametrize("backend", ["triton", "torch", "reference"])

UNEVEN_QUERIES = [[1, 70, 0, 33, 29], [50, 0, 50, 1, 32]]  # 133 tokens; blocks of 0, 1 and several tiles
UNEVEN_KEYS = [[17, 0, 1, 16, 40, 15, 0, 44], [0, 100, 1, 1, 1, 14, 16, 0]]


def check(problem, backend):
    out, lse = problem.run(block_sparse_attention, backend=backend)
    expected, expected_lse = problem.dense()
    assert out.shape == problem.q.shape and out.dtype == problem.q.dtype
    assert_close(out, expected, units=24)
    assert_close(lse, expected_lse, units=32)
    return out, lse


@pytest.mark.parametrize("dim", [64, 128])
def test_uneven_blocks_orders_per_head_and_batch(make_problem, backend, dim):
    check(make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, batch=2, heads=3, dim=dim), backend)


def test_half_precision_is_as_exact_as_dense_half_precision(make_problem, backend):
    """The interpreter has no bf16 arithmetic; the gpu tier has it."""
    for dtype in (torch.float16, torch.bfloat16) if backend == "reference" else (torch.float16,):
        check_half_precision(make_problem, backend, dtype)


def check_half_precision(make_problem, backend, dtype):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, dtype=dtype)
    expected, _ = problem.dense()
    plain = torch.nn.functional.scaled_dot_product_attention(
        problem.q, problem.k, problem.v, attn_mask=problem.token_mask(), scale=problem.scale
    )
    seen = problem.token_mask().any(-1, keepdim=True)
    plain_error = ((plain.double() - expected) * seen).nan_to_num().norm()
    out, _ = problem.run(block_sparse_attention, backend=backend)
    assert (out.double() - expected).norm() <= 1.5 * plain_error


@pytest.mark.parametrize("dim", [64, 128])
def test_everything_kept_is_dense_attention(make_problem, backend, dim):
    keep = torch.ones(1, 2, 5, 8, dtype=torch.bool)
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, keep=keep, dim=dim)
    out, _ = check(problem, backend)
    dense = torch.nn.functional.scaled_dot_product_attention(problem.q, problem.k, problem.v)
    assert_close(out, dense, units=24)


def test_strided_inputs_and_the_layout_of_the_result(make_problem, backend):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, batch=2, packed=True)
    assert not problem.q.is_contiguous()
    out, _ = check(problem, backend)
    assert out.transpose(1, 2).is_contiguous()


def test_one_row_keeps_everything_and_another_one_block(make_problem, backend):
    keep = torch.zeros(1, 2, 5, 8, dtype=torch.bool)
    keep[:, :, 1] = True
    keep[:, :, 3, 4] = True
    check(make_problem(UNEVEN_QUERIES, UNEVEN_KEYS[:1], keep=keep), backend)


def test_a_query_that_sees_nothing_gets_zero_and_minus_infinity(make_problem, backend):
    keep = torch.rand(1, 2, 5, 8) < 0.5
    keep[:, :, 1] = False
    keep[:, :, 3] = False
    keep[:, :, 3, 1] = True  # a block without tokens
    problem = make_problem(UNEVEN_QUERIES[:1], UNEVEN_KEYS[:1], keep=keep)
    out, lse = check(problem, backend)
    blind = ~problem.token_mask().any(-1)
    assert blind.any() and (out[blind] == 0).all() and (lse[blind] == -torch.inf).all()


def test_keep_shared_by_batch_and_heads_as_an_expanded_view(make_problem, backend):
    keep = (torch.rand(5, 8, generator=torch.Generator().manual_seed(3)) < 0.5).expand(2, 3, 5, 8)
    check(make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, batch=2, heads=3, keep=keep), backend)


@pytest.mark.parametrize("sizes", [[1], [0, 1, 0], [3, 0, 0, 0, 2]])
def test_fewer_tokens_than_a_chunk(make_problem, backend, sizes):
    check(make_problem([sizes], [sizes], density=1.1), backend)


def test_query_and_key_counts_differ(make_problem, backend):
    check(make_problem([[5, 2]], [[100, 33, 60]], density=0.7), backend)


def test_identical_tokens_give_the_mean_of_the_visible_values(make_problem, backend):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS)
    problem.q[:], problem.k[:] = 1.0, 1.0
    check(problem, backend)


def test_huge_logits_do_not_overflow(make_problem, backend):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS)
    problem.q.mul_(100), problem.k.mul_(100)
    out, lse = problem.run(block_sparse_attention, backend=backend)
    expected, expected_lse = problem.dense()
    assert_close(lse, expected_lse, units=16)
    assert distance(out, expected) <= 5e-3  # a rounding of a logit is a large part of its exponential


def test_keys_behind_the_last_block_are_seen_by_nobody(make_problem, backend):
    """Padding of a prompt is such a tail: its content must not matter."""
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS[:1], unseen_keys=21)
    out, lse = check(problem, backend)
    tail = problem.plan["key_tokens"][0, -21:].long()
    problem.k[:, :, tail] = 1e4
    problem.v[:, :, tail] = -1e4
    again, lse_again = problem.run(block_sparse_attention, backend=backend)
    assert torch.equal(out, again) and torch.equal(lse, lse_again)


def test_content_of_a_block_that_is_not_kept_changes_nothing(make_problem, backend):
    keep = torch.rand(1, 2, 5, 8, generator=torch.Generator().manual_seed(1)) < 0.6
    keep[..., 4] = False
    problem = make_problem(UNEVEN_QUERIES[:1], UNEVEN_KEYS[:1], keep=keep)
    out, _ = problem.run(block_sparse_attention, backend=backend)
    start, end = problem.plan["key_offsets"][0, 4:6].tolist()
    hidden = problem.plan["key_tokens"][0, start:end].long()
    problem.k[:, :, hidden] = 500.0
    problem.v[:, :, hidden] = torch.finfo(torch.float32).max / 4
    again, _ = problem.run(block_sparse_attention, backend=backend)
    assert torch.equal(out, again)


def test_log_sum_exp_merges_two_halves_of_the_keys(make_problem, backend):
    whole = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, keep=torch.ones(1, 2, 5, 8, dtype=torch.bool))
    left, right = whole.plan["keep"].clone(), whole.plan["keep"].clone()
    left[..., 4:], right[..., :4] = False, False
    parts = []
    for keep in (left, right):
        whole.plan["keep"] = keep
        parts.append(whole.run(block_sparse_attention, backend=backend))
    whole.plan["keep"] = left | right
    out, lse = whole.run(block_sparse_attention, backend=backend)
    merged = torch.logaddexp(parts[0][1], parts[1][1])
    assert_close(merged, lse)
    mixed = sum(o * (part_lse - merged).exp()[..., None] for o, part_lse in parts)
    assert_close(mixed, out, units=24)


def test_more_kept_blocks_never_lower_the_kept_mass(make_problem, backend):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, density=0.3)
    _, less = problem.run(block_sparse_attention, backend=backend)
    problem.plan["keep"] = problem.plan["keep"] | (torch.rand(1, 2, 5, 8) < 0.5)
    _, more = problem.run(block_sparse_attention, backend=backend)
    assert (more >= less - 16 * torch.finfo(less.dtype).eps * less.nan_to_num(neginf=0).abs().max()).all()


def test_the_order_of_tokens_inside_blocks_changes_nothing(make_problem, backend):
    """Permuting queries permutes rows only; permuting keys and values together changes nothing."""
    problem = make_problem(UNEVEN_QUERIES[:1], UNEVEN_KEYS[:1])
    out, _ = problem.run(block_sparse_attention, backend=backend)
    for side, sizes in (("query", UNEVEN_QUERIES[0]), ("key", UNEVEN_KEYS[0])):
        pieces = problem.plan[f"{side}_tokens"][0].split(sizes)
        problem.plan[f"{side}_tokens"] = torch.cat([piece.flip(0) for piece in pieces])[None].contiguous()
    again, _ = problem.run(block_sparse_attention, backend=backend)
    assert_close(out, again, units=24)


def test_no_log_sum_exp_unless_asked(make_problem, backend):
    problem = make_problem([[20, 13]], [[20, 13]], density=1.1)
    out, lse = problem.run(block_sparse_attention, backend=backend, return_lse=False)
    assert lse is None
    assert torch.equal(out, problem.run(block_sparse_attention, backend=backend)[0])


@pytest.mark.parametrize("dim", [64, 128])
def test_a_tail_stands_in_for_the_blocks_that_are_not_kept(make_problem, backend, dim):
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, batch=2, heads=3, dim=dim)
    without, _ = problem.run(block_sparse_attention, backend=backend)
    problem.plan["tail"] = problem.pool()
    out, _ = check(problem, backend)
    assert distance(out, without) > 1e-2


def test_a_tail_changes_nothing_where_everything_is_kept(make_problem, backend):
    keep = torch.ones(1, 2, 5, 8, dtype=torch.bool)
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, keep=keep, tail=True)
    with_tail = problem.run(block_sparse_attention, backend=backend)
    # What stands in for a kept block is not even read.
    problem.plan["tail"].keys.fill_(500), problem.plan["tail"].values.fill_(torch.finfo(torch.float32).max)
    poisoned = problem.run(block_sparse_attention, backend=backend)
    del problem.plan["tail"]
    without = problem.run(block_sparse_attention, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(with_tail, poisoned, strict=True))
    for found, expected in zip(with_tail, without, strict=True):
        assert_close(found, expected, units=24)


def test_a_tail_alone_answers_a_query_that_keeps_nothing(make_problem, backend):
    keep = torch.zeros(1, 2, 5, 8, dtype=torch.bool)
    out, lse = check(make_problem(UNEVEN_QUERIES, UNEVEN_KEYS, keep=keep, tail=True), backend)
    assert torch.isfinite(lse).all() and (out != 0).any()


def test_a_tail_over_many_blocks_and_an_expanded_map(make_problem, backend):
    sizes = [[1, 2, 0] * 50]
    keep = (torch.rand(5, 150, generator=torch.Generator().manual_seed(3)) < 0.2).expand(1, 2, 5, 150)
    check(make_problem(UNEVEN_QUERIES, sizes, keep=keep, tail=True), backend)


def test_a_tail_of_equal_keys_is_exact(make_problem, backend):
    """Blocks whose keys and values do not differ lose nothing by pooling: the answer is dense attention."""
    problem = make_problem(UNEVEN_QUERIES, UNEVEN_KEYS[:1], density=0.3)
    for j, tokens in enumerate(problem.plan["key_tokens"][0].long().split(UNEVEN_KEYS[0])):
        problem.k[:, :, tokens] = torch.randn(64, generator=torch.Generator().manual_seed(j))
        problem.v[:, :, tokens] = torch.randn(64, generator=torch.Generator().manual_seed(j + 99))
    problem.plan["tail"] = problem.pool()
    out, _ = check(problem, backend)
    dense = torch.nn.functional.scaled_dot_product_attention(problem.q, problem.k, problem.v)
    assert_close(out, dense, units=32)


@pytest.mark.parametrize(
    ("formats", "room", "turns"),
    [(None, 1, [1, 1, 1]), (None, 200_000, [1, 2]), (Formats(INT8, FP8), 1, [1, 1, 1])],
    ids=["16", "16, two heads at a time", "8"],
)
def test_heads_that_take_turns_in_memory_change_nothing(make_problem, backend, monkeypatch, formats, room, turns):
    problem = make_problem([[1, 18, 0, 14]], [[17, 0, 1, 16, 6]], batch=2, heads=3, tail=True, packed=True)
    at_once, lse_at_once = problem.run(block_sparse_attention, formats=formats, backend=backend)

    heads, lists = [], module.chunk_lists

    def counted(keep, *others, **options):
        heads.append(keep.shape[1])
        return lists(keep, *others, **options)

    monkeypatch.setattr(module, "chunk_lists", counted)
    monkeypatch.setattr(module, "GATHERED", room)
    out, lse = problem.run(block_sparse_attention, formats=formats, backend=backend)
    assert torch.equal(out, at_once) and torch.equal(lse, lse_at_once) and out.stride() == at_once.stride()
    without_lse, none = problem.run(block_sparse_attention, formats=formats, backend=backend, return_lse=False)
    assert torch.equal(without_lse, at_once) and none is None
    assert heads == (2 * turns if backend == "triton" else [])
