"""Key blocks read through tensor descriptors, a tall chunk a step: the same answers as through pointers."""

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.executor import execute
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.kernels.attention_configs import choose_config, reads_tall_chunks
from dit_accel.kernels.block_sparse_attention import block_sparse_attention
from dit_accel.kernels.gather import CHUNK, TALL
from dit_accel.kernels.quantise import FP8, INT8, Formats
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.closeness import assert_close, distance

QUERIES = [[1, 70, 0, 62], [50, 0, 51, 32]]
# A full chunk, a row less, a row more, two of them, one row, none.
KEYS = [[64, 63, 65, 128, 1, 0], [0, 128, 129, 1, 0, 63]]
ALL_FORMATS = [Formats(INT8, None), Formats(INT8, FP8), Formats(None, FP8), Formats(FP8, FP8)]
all_formats = pytest.mark.parametrize("formats", ALL_FORMATS, ids=lambda f: "+".join(str(name)[6:11] for name in f))


@pytest.fixture
def described(monkeypatch):
    """The shapes of all blocks that a descriptor was made for."""
    from dit_accel.kernels.triton import block_sparse_attention as module

    shapes, real = [], module._descriptor

    def spy(chunks, rows, columns):
        shapes.append((rows, columns))
        return real(chunks, rows, columns)

    monkeypatch.setattr(module, "_descriptor", spy)
    return shapes


def tall(problem):
    """`problem` with the number of tall chunks of its key orders."""
    sizes = problem.plan["key_offsets"].diff(dim=1)
    problem.plan["key_tall_chunks"] = int((-(-sizes // TALL)).sum(1).amax())
    return problem


def relative(out, expected) -> float:
    return float((out.double() - expected.double()).norm() / expected.double().norm())


def check(problem):
    out, lse = tall(problem).run(block_sparse_attention, backend="triton")
    expected, expected_lse = problem.dense()
    assert_close(out, expected, units=24)
    assert_close(lse, expected_lse, units=32)


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
def test_blocks_of_about_a_chunk(make_problem, described, dim, tail):
    check(make_problem(QUERIES, KEYS, batch=2, heads=3, dim=dim, tail=tail, packed=True))
    assert described == [(TALL, dim)] * 2


@pytest.mark.parametrize("sizes", [[1], [0, 1, 0], [64], [65], [3, 0, 0, 0, 2]])
def test_few_tokens(make_problem, described, sizes):
    check(make_problem([sizes], [sizes], density=1.1))
    assert described


def test_a_row_that_keeps_nothing_and_a_map_shared_by_all(make_problem):
    keep = torch.zeros(4, 6, dtype=torch.bool)
    keep[1], keep[3, 2] = True, True
    check(make_problem(QUERIES[:1], KEYS[:1], batch=2, keep=keep.expand(2, 2, 4, 6)))


@pytest.mark.parametrize("formats", [None, *ALL_FORMATS])
def test_nothing_but_kept_tokens_is_seen(make_problem, formats):
    """NaN behind the last block, in a block that is not kept, and in memory that nobody has written. At 8 bits a NaN
    token spoils the steps that all tokens share, so only fresh memory is NaN there."""
    keep = torch.rand(1, 2, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.7
    keep[..., 2] = False
    problem = tall(make_problem(QUERIES[:1], KEYS[:1], keep=keep, unseen_keys=21))
    out, lse = problem.run(block_sparse_attention, backend="triton", formats=formats)
    assert torch.isfinite(out).all() and torch.isfinite(lse).all()
    start, end = problem.plan["key_offsets"][0, 2:4].tolist()
    tokens = problem.plan["key_tokens"][0].long()
    value = torch.nan if formats is None else 1.0
    for hidden in (tokens[-21:], tokens[start:end]):
        problem.k[:, :, hidden] = problem.k[:, :, hidden] * value
        problem.v[:, :, hidden] = problem.v[:, :, hidden] * value
    again, lse_again = problem.run(block_sparse_attention, backend="triton", formats=formats)
    assert torch.equal(out, again) and torch.equal(lse, lse_again)


def test_half_precision(make_problem, described):
    """The interpreter has no bf16 arithmetic; the gpu tier has it."""
    problem = make_problem(QUERIES, KEYS, dtype=torch.float16)
    through_pointers, _ = problem.run(block_sparse_attention, backend="triton")
    assert not described
    out, _ = tall(problem).run(block_sparse_attention, backend="triton")
    assert described
    expected, _ = problem.dense()
    assert relative(out, expected) <= 1.5 * relative(through_pointers, expected) <= 3e-3


@pytest.mark.spread(1)
@all_formats
@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
def test_8_bits(make_problem, described, formats, tail, dim):
    problem = tall(make_problem(QUERIES, KEYS, batch=2, heads=3, dim=dim, tail=tail, packed=True))
    (out, lse), (expected, expected_lse) = (
        problem.run(block_sparse_attention, formats=formats, backend=backend) for backend in ("triton", "reference")
    )
    assert described == [(TALL, dim), (TALL, dim) if formats.values is None else (dim, TALL)]
    # A product that falls between two codes may be rounded either way; the reference leaves out the attention weights'
    # own rounding to FP8.
    assert relative(out, expected) <= (1e-3 if formats.values is None else 0.025)
    assert distance(lse, expected_lse) <= 1e-3


@pytest.mark.spread(1)
@pytest.mark.parametrize("pattern", [name for name, row in PATTERNS.items() if not row.planning.clusters])
@pytest.mark.parametrize("formats", [None, Formats(INT8, FP8)], ids=["16", "8"])
@pytest.mark.parametrize(
    ("batch", "layout"),
    [(1, TokenLayout((4, 20, 20), prefix=13)), (2, TokenLayout((4, 20, 20)))],
    ids=["prefix", "batch"],
)
def test_patterns_whose_blocks_the_host_knows(described, pattern, formats, batch, layout):
    random = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, 1, layout.total, 64, generator=random) for _ in range(3))
    call = make_call(q, k, v, layout)
    plan = PATTERNS[pattern].plan(call, Budget(top_p=0.5, max_density=0.1).spending())
    out, expected = (
        execute(q, k, v, plan, formats=formats, scale=call.scale, backend=backend)
        for backend in ("triton", "reference")
    )
    assert len(described) == 2, "keys and values go through descriptors"
    assert relative(out, expected) <= (2e-6 if formats is None else 0.03)


def test_clusters_go_through_pointers(described):
    layout = TokenLayout((4, 8, 8))
    q, k, v = (torch.randn(1, 1, layout.total, 64, generator=torch.Generator().manual_seed(0)) for _ in range(3))
    plan = PATTERNS["svg2"].plan(make_call(q, k, v, layout), Budget().spending())
    execute(q, k, v, plan, scale=0.1, backend="triton")
    assert plan.keys.tall_chunks is None and not described


CHIPS = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "sm_121", "gfx942", "gfx1100", "gfx1201"]


@pytest.mark.parametrize("chip", CHIPS)
def test_chips_that_copy_by_descriptor(chip):
    able = chip in ("sm_90", "sm_100", "sm_103", "sm_120", "sm_121")
    assert reads_tall_chunks(chip) == able
    for dim in (64, 128):
        assert not choose_config(chip, dim, torch.bfloat16, torch.bfloat16, CHUNK).descriptors
        if able:
            config = choose_config(chip, dim, torch.bfloat16, torch.bfloat16, TALL)
            assert config.descriptors and config.keys == TALL
