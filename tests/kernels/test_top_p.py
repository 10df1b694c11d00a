"""Block selection: both backends against a selection that sorts, and its invariants on random rows."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from dit_accel.kernels.top_p import select_blocks

backends = pytest.mark.parametrize("backend", ["triton", "torch", "reference"])


def rows(blocks=40, queries=2, seed=0, sharpness=2.0, empty=4):
    random = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 50, (2, 3, blocks), generator=random).int()
    sizes[..., torch.randperm(blocks, generator=random)[:empty]] = 0
    logits = torch.randn(2, 3, queries, blocks, generator=random) * sharpness + sizes[:, :, None].log()
    return logits.softmax(-1), sizes


def select(scores, sizes, backend, *, top_p=0.0, floor=0.0, max_density=1.0):
    return select_blocks(scores, sizes, top_p=top_p, floor=floor, max_density=max_density, backend=backend)


def by_sorting(scores, sizes, top_p, floor, max_density):
    """The rule for rows without ties, one row and one block at a time."""
    keep = torch.zeros_like(scores, dtype=torch.bool)
    capped = torch.zeros(scores.shape[:3], dtype=torch.bool)
    blocks = scores.shape[-1]
    for b, h, q in torch.cartesian_prod(*map(torch.arange, scores.shape[:3])).tolist():
        size, mass, tokens = sizes[b, h], 0.0, 0
        rank = max(1, math.ceil(round(floor * blocks, 6)))
        wanted = []
        for block in scores[b, h, q].argsort(descending=True).tolist():
            if size[block] and (top_p >= 1 or mass < top_p or len(wanted) < rank):
                wanted.append(block)
                mass += float(scores[b, h, q, block])
        for place, block in enumerate(wanted):
            tokens += int(size[block])
            if place and tokens > max_density * int(size.sum()):
                capped[b, h, q] = True
                break
            keep[b, h, q, block] = True
    return keep, capped


@pytest.mark.spread(2)
@backends
@pytest.mark.parametrize("blocks", [1, 5, 40, 64, 300])
@pytest.mark.parametrize(
    ("top_p", "floor", "max_density"),
    [(0.9, 0.0, 1.0), (0.5, 0.1, 1.0), (0.0, 0.3, 1.0), (1.0, 0.0, 1.0), (0.9, 0.05, 0.3), (1.0, 1.0, 0.01)],
)
def test_equals_selection_by_sorting(backend, blocks, top_p, floor, max_density):
    scores, sizes = rows(blocks=blocks, queries=1, empty=min(4, blocks - 1))
    keep, capped = select(scores, sizes, backend, top_p=top_p, floor=floor, max_density=max_density)
    expected, expected_capped = by_sorting(scores, sizes, top_p, floor, max_density)
    assert torch.equal(keep, expected) and torch.equal(capped, expected_capped)


@backends
@pytest.mark.parametrize("max_density", [1.0, 0.3])
def test_one_number_a_head_is_each_head_alone(backend, max_density):
    """Numbers that lie in a wider tensor; 1 and more ask for everything."""
    scores, sizes = rows()
    kept = []
    for numbers in (0.3, 1.0, 0.95), (1.5, 0.05, 0.8):
        head_top_p = torch.tensor(numbers)[:, None].repeat(1, 2)[:, 0]
        options = {"floor": 0.02, "max_density": max_density}
        keep, capped = select(scores, sizes, backend, top_p=head_top_p, **options)
        for head, top_p in enumerate(numbers):
            part = slice(head, head + 1)
            alone = select(scores[:, part], sizes[:, part], backend, top_p=top_p, **options)
            assert all(map(torch.equal, (keep[:, part], capped[:, part]), alone))
        kept.append(keep)
    assert not torch.equal(*kept)


@backends
@hypothesis.settings(max_examples=12, deadline=None)
@hypothesis.given(
    seed=st.integers(0, 1000),
    sharpness=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    top_p=st.floats(0, 1),
    floor=st.floats(0, 1),
    max_density=st.floats(0.01, 1),
)
def test_invariants(backend, seed, sharpness, top_p, floor, max_density):
    scores, sizes = (x[:1, :2] for x in rows(blocks=21, queries=1, seed=seed, sharpness=sharpness))
    weights = sizes[:, :, None].expand_as(scores)
    free, uncapped = select(scores, sizes, backend, top_p=top_p, floor=floor)
    assert not uncapped.any() and not free[weights == 0].any()
    mass = torch.where(free, scores, 0).sum(-1)
    assert (mass >= top_p - 1e-5).all()
    rank = min(max(1, math.ceil(round(floor * 21, 6))), 17)
    assert (free.sum(-1) >= rank).all()
    # Nothing smaller would do: without the class of lowest kept scores, mass and rank both fall short.
    lowest = torch.where(free, scores, torch.inf).amin(-1, keepdim=True)
    rest = free & (scores > lowest)
    short = (torch.where(rest, scores, 0).sum(-1) < top_p + 1e-5) | (rest.sum(-1) < rank)
    assert short.all()

    keep, capped = select(scores, sizes, backend, top_p=top_p, floor=floor, max_density=max_density)
    kept_tokens = torch.where(keep, weights, 0).sum(-1)
    fits = kept_tokens <= max_density * sizes.sum(-1)[:, :, None] + 1e-3
    assert (fits | (keep.sum(-1) == 1)).all() and keep.any(-1).all()
    assert torch.equal(capped, (keep != free).any(-1)) and not (keep & ~free).any()
    best = scores.masked_fill(weights == 0, -1).argmax(-1, keepdim=True)
    assert keep.gather(-1, best).all()


@backends
def test_more_mass_keeps_more(backend):
    scores, sizes = rows()
    previous, _ = select(scores, sizes, backend, top_p=0.0)
    assert (previous.sum(-1) == 1).all()
    for top_p in (0.3, 0.6, 0.9, 0.99, 1.0):
        keep, _ = select(scores, sizes, backend, top_p=top_p)
        assert not (previous & ~keep).any()
        previous = keep
    assert torch.equal(previous, (sizes > 0)[:, :, None].expand_as(previous))


@backends
def test_ties_are_kept_together_but_the_cap_cuts_them_in_order(backend):
    scores = torch.full((2, 3, 2, 16), 1 / 16)
    sizes = torch.full((2, 3, 16), 10, dtype=torch.int32)
    keep, capped = select(scores, sizes, backend, top_p=0.5)
    assert keep.all() and not capped.any()
    keep, capped = select(scores, sizes, backend, top_p=0.5, max_density=0.25)
    assert keep[..., :4].all() and not keep[..., 4:].any() and capped.all()


@backends
def test_scores_that_underflowed_to_zero_count_as_blocks(backend):
    scores = torch.zeros(1, 1, 1, 6)
    scores[..., 2] = 1.0
    sizes = torch.tensor([[[3, 0, 3, 3, 3, 3]]], dtype=torch.int32)
    for everything in (1.0, torch.ones(1)):
        keep, _ = select(scores, sizes, backend, top_p=everything)
        assert keep[0, 0, 0].tolist() == [True, False, True, True, True, True]
    keep, _ = select(scores, sizes, backend, top_p=0.9)
    assert keep[0, 0, 0].tolist() == [False, False, True, False, False, False]


@backends
def test_the_floor_is_not_raised_by_rounding(backend):
    scores, sizes = rows(blocks=100, empty=0)
    keep, _ = select(scores, sizes, backend, floor=0.07)
    assert 0.07 * 100 > 7 and (keep.sum(-1) == 7).all()


@backends
def test_sizes_and_scores_as_views(backend):
    scores, sizes = rows()
    expected, _ = select(scores, sizes[:, :1].expand(-1, 3, -1).contiguous(), backend, top_p=0.9)
    strided = scores.transpose(1, 2).contiguous().transpose(1, 2)
    keep, _ = select(strided, sizes[:, :1].expand(-1, 3, -1), backend, top_p=0.9)
    assert torch.equal(keep, expected)
