"""svg1: heads find their axis order, the bands are what they say, and a choice lasts until tokens drift."""

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.memory import StaticPlans, TensorCache
from dit_accel.accel.attention.planners import svg1
from dit_accel.accel.attention.planners.svg1 import AXES, band_map
from dit_accel.tests.support.calls import make_call

GRID = (8, 9, 10)
LAYOUT = TokenLayout(GRID, prefix=6)
BUDGET = Budget(top_p=1.0, max_density=0.3).spending()
# Which axes a head's neighbourhood is narrow on, and the orders whose band holds it: those with that axis slowest.
HEADS = {0: {0, 1}, 1: {2, 3}, 2: {4, 5}}


def head(narrow: int, seed: int = 0) -> torch.Tensor:
    """Tokens whose dot product falls off with the distance along one axis of the grid and hardly along the others:
    random Fourier features of the position."""
    random = torch.Generator().manual_seed(seed)
    place = torch.cartesian_prod(*(torch.arange(n).double() for n in GRID))
    frequency = torch.full((3, 32), 0.02, dtype=torch.float64)
    frequency[narrow] = 1.2
    angle = place @ (frequency * torch.randn(3, 32, generator=random, dtype=torch.float64))
    video = 6 * torch.cat([angle.cos(), angle.sin()], dim=1)
    return torch.cat([torch.zeros(LAYOUT.prefix, 64), video.float()])


@pytest.fixture(scope="module")
def qkv():
    q = torch.stack([head(axis, seed) for seed in range(4) for axis in HEADS])[None]
    return q, q, torch.randn(q.shape, generator=torch.Generator().manual_seed(9))


def test_heads_are_sorted_by_their_axis(qkv):
    plan = svg1.plan(make_call(*qkv, LAYOUT), BUDGET)
    chosen = plan.queries.index[0].tolist()
    assert all(order in HEADS[number % 3] for number, order in enumerate(chosen))
    assert torch.equal(plan.keys.index, plan.queries.index)


def test_few_rows_agree_with_all_rows(qkv, monkeypatch):
    few = svg1.plan(make_call(*qkv, LAYOUT), BUDGET).queries.index
    monkeypatch.setattr(svg1, "ROWS", LAYOUT.video)
    every = svg1.plan(make_call(*qkv, LAYOUT), BUDGET).queries.index
    # Two of the orders have one axis slowest, and their bands are nearly the same.
    assert (few // 2 == every // 2).float().mean() >= 0.95


def test_sampled_rows_lie_in_every_frame():
    call = make_call(*(torch.zeros(1, 1, LAYOUT.total, 64) for _ in range(3)), LAYOUT)
    rows = svg1._bands(call, 0.3).rows - LAYOUT.prefix
    assert set((rows // 90).tolist()) == set(range(8))
    assert len(rows.unique()) == svg1.ROWS


def test_the_profiled_map_is_the_executed_one(qkv):
    """What a sampled row sees while profiling is what its block keeps in the plan."""
    from dit_accel.tests.support.oracle import token_mask

    call = make_call(*qkv, LAYOUT)
    bands = svg1._bands(call, 0.3)
    for order in range(len(AXES)):
        index = torch.full((1, 1), order, dtype=torch.int32)
        plan = bands.plan
        one = type(plan)(
            type(plan.queries)(plan.queries.tokens, plan.queries.offsets, index),
            type(plan.keys)(plan.keys.tokens, plan.keys.offsets, index),
            plan.keep[None, None, order],
        )
        assert torch.equal(token_mask(one, LAYOUT.total)[0, 0, bands.rows], bands.visible[order])


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("target", [0.15, 0.3, 0.6])
def test_a_band_keeps_its_width_at_the_ends_and_the_first_frame(axes, target):
    made = band_map(GRID, axes, target)
    assert 0.7 * target < made.density() <= max(target, 0.2)  # the first frame and the own blocks are always there
    first = int((made.keys.offsets < 90).sum())
    assert made.keys.offsets[first] == 90 and set(made.keys.tokens[:90].tolist()) == set(range(90))
    assert made.keep[:, :first].all() and made.always[:, :first].all()
    seen = (made.keep.double() @ made.keys.sizes().double()) / 720
    assert seen.min() > 0.6 * seen.max(), "blocks at the ends see less than those in the middle"
    # Along the order a block sees one stretch (the first frame's tokens are missing from it).
    for row in made.keep[:, first:]:
        inside = row.nonzero().flatten()
        assert (inside.diff() == 1).all() and len(inside)


def test_a_choice_is_reused_until_tokens_drift(qkv, monkeypatch):
    profiled = []
    real = svg1.profile
    monkeypatch.setattr(svg1, "profile", lambda *args: (profiled.append(1), real(*args))[1])
    cache, static = TensorCache(), StaticPlans()
    q, k, v = qkv

    def step(q, k):
        plan = svg1.plan(make_call(q, k, v, LAYOUT, cache=cache, static=static), BUDGET)
        cache.settle()  # the end of a forward
        return plan.queries.index

    first = step(q, k)
    for _ in range(3):  # small changes add up to nothing: each is measured against the profiled tokens
        assert torch.equal(step(q + 0.1 * torch.randn_like(q), k), first)
    assert len(profiled) == 1
    # Other tokens: the change is noticed in one evaluation and acted on in the next.
    other = q.roll(1, dims=1)
    assert torch.equal(step(other, other), first)
    assert torch.equal(step(other, other), first.roll(1, dims=1))
    assert len(profiled) == 2


def test_one_head_that_drifts_is_enough(qkv):
    """And the other branch of the batch keeps its choice."""
    cache, static = TensorCache(), StaticPlans()
    q, k, v = (torch.cat([x, x]) for x in qkv)
    svg1.plan(make_call(q, k, v, LAYOUT, cache=cache, static=static, branches=("a", "b")), BUDGET)
    other = q.clone()
    other[1, 5] = q[1, 4]
    svg1.plan(make_call(other, k, v, LAYOUT, cache=cache, static=static, branches=("a", "b")), BUDGET)
    cache.settle()
    assert [cache.get((branch, "layer")) is None for branch in "ab"] == [False, True]


def test_top_p_never_takes_the_first_frame_away(qkv):
    plan = svg1.plan(make_call(*qkv, LAYOUT), Budget(top_p=0.05, floor=0.0).spending())
    offered = svg1.plan(make_call(*qkv, LAYOUT), Budget(top_p=1.0, max_density=0.5).spending())
    first = 1 + int((plan.keys.offsets[0] - LAYOUT.prefix < 90).sum()) - 1
    assert plan.keep[..., :first].all()
    assert plan.density() < 0.7 * offered.density()


def test_branches_choose_apart(qkv):
    q, k, v = qkv
    both = [torch.cat([x, x.roll(1, dims=1)]) for x in (q, k, v)]
    cache, static = TensorCache(), StaticPlans()
    batched = svg1.plan(make_call(*both, LAYOUT, cache=cache, static=static, branches=("a", "b")), BUDGET)
    assert torch.equal(batched.queries.index[1], batched.queries.index[0].roll(1))
    alone = svg1.plan(make_call(*(x[1:] for x in both), LAYOUT, cache=cache, static=static, branches=("b",)), BUDGET)
    assert torch.equal(alone.queries.index[0], batched.queries.index[1])
    assert len(cache) == 2
