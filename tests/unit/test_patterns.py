"""What every attention pattern must do, whatever it chooses by."""

import pytest
import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import PRESETS, Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.memory import StaticPlans, TensorCache
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.planners.select import estimated_mass, means
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.oracle import attention_of_plan, members

STATIC = tuple(name for name, pattern in PATTERNS.items() if pattern.static)
TAILED = tuple(name for name, pattern in PATTERNS.items() if pattern.planning.tail)
# What a pattern may do in a way of its own is said here.
SPENDS_ELSEWHERE = ("svg_ear",)  # as many keys as svg2 would, by another measure (test_svg_ear.py)
CHOOSES_BY_OUTPUT = ("svg1",)  # of which text is a part; and its heads may choose otherwise at another density
SEES_FIRST_FRAME = ("svg1", "radial")
GRID = (5, 7, 11)
LAYOUTS = [
    pytest.param(TokenLayout(GRID), id="video alone"),
    pytest.param(TokenLayout(GRID, prefix=9, suffix=4), id="with text"),
    pytest.param(TokenLayout((1, 13, 9), prefix=3), id="one frame"),
    pytest.param(TokenLayout((3, 1, 1)), id="three tokens"),
]
pytestmark = pytest.mark.parametrize("pattern", PATTERNS)


def tokens(layout, seed=0, batch=1, heads=3, dim=64):
    """Smooth over the grid, as features of a video are, with a private part."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch * heads, dim, 2, 3, 3, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, layout.grid, mode="trilinear").flatten(2)
    video = smooth.unflatten(0, (batch, heads)).transpose(2, 3) * 2
    video = video + 0.5 * torch.randn(video.shape, generator=random)
    others = torch.randn(batch, heads, layout.extra, dim, generator=random)
    return torch.cat([others[:, :, : layout.prefix], video, others[:, :, layout.prefix :]], dim=2)


def qkv(layout, **kwargs):
    q = tokens(layout, **kwargs)
    return q, q + 0.3 * tokens(layout, seed=1, **kwargs), tokens(layout, seed=2, **kwargs)


def make(pattern, layout, budget, batch=1, **kwargs):
    call = make_call(*qkv(layout, batch=batch), layout, **kwargs)
    return call, PATTERNS[pattern].plan(call, budget.spending())


def run(call, plan):
    return executor.execute(call.q, call.k, call.v, plan, scale=call.scale, backend="reference")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("token_order", ["auto", "raster", "morton"])
def test_density_one_is_dense_attention(pattern, layout, token_order):
    call, plan = make(pattern, layout, Budget(top_p=1.0, max_density=1.0), token_order=token_order)
    assert plan.density() == pytest.approx(1.0)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.double() for x in (call.q, call.k, call.v)))
    assert_close(run(call, plan), dense, units=48)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [Budget(top_p=0.5, floor=0.0), Budget(top_p=1.0, max_density=0.3)], ids=["p", "cap"])
def test_the_executor_computes_what_the_plan_says(pattern, layout, budget):
    call, plan = make(pattern, layout, budget, batch=2)
    if layout.grid == GRID:
        assert 0.02 < plan.density() < 0.8
    assert (plan.tail is not None) == (pattern in TAILED)
    exact = attention_of_plan(call.q, call.k, call.v, plan, call.scale)
    assert_close(run(call, plan), exact, units=48)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_orders_hold_every_token_once_and_text_first(pattern, layout):
    _, plan = make(pattern, layout, PRESETS["faithful"])
    others = {*range(layout.prefix), *range(layout.prefix + layout.video, layout.total)}
    for order in (plan.queries, plan.keys):
        assert order.tokens.dtype == order.offsets.dtype == order.index.dtype == torch.int32
        assert torch.equal(order.tokens.sort(1).values, torch.arange(layout.total).expand(order.tokens.shape).int())
        assert (order.offsets.diff(dim=1) >= 0).all() and (order.offsets[:, -1] == layout.total).all()
        assert all(set(members(order, 0, h)[0].tolist()) == others for h in range(3))
    assert plan.keep[:, :, 0].all() and plan.keep[..., 0].all()
    kept = (plan.keep[:, :, 1:, 1:].long() * plan.keys.sizes()[:, :, None, 1:]).sum(-1)
    assert (kept[plan.queries.sizes()[:, :, 1:] > 0] > 0).all(), "a video query sees no video at all"


@pytest.mark.parametrize("top_p", [0.3, 0.6, 0.9])
def test_kept_mass_reaches_top_p(pattern, top_p):
    """Of the candidates' estimated mass."""
    if pattern in SPENDS_ELSEWHERE:
        return
    layout = TokenLayout(GRID, prefix=9)
    call, plan = make(pattern, layout, Budget(top_p=top_p, floor=0.0))
    orders = (call.q, plan.queries), (call.k, plan.keys)
    queries, keys = (means(x, order, "reference")[:, :, 1:] for x, order in orders)
    mass = estimated_mass(queries, keys, plan.keys.sizes()[:, :, 1:], call.scale)
    always = torch.zeros_like(plan.keep[:, :, 1:, 1:])
    if pattern in STATIC:
        _, offered = make(pattern, layout, Budget(top_p=1.0, max_density=0.5))
        mass = mass.where(offered.keep[:, :, 1:, 1:], 0)
        mass = mass / mass.sum(-1, keepdim=True)
        # With next to no density there is nothing but what is always there.
        _, least = make(pattern, layout, Budget(top_p=1.0, max_density=0.01))
        if pattern not in CHOOSES_BY_OUTPUT:
            always = least.keep[:, :, 1:, 1:]
            assert (plan.keep[:, :, 1:, 1:] | ~always).all(), "top_p took away what is always there"
    kept = mass.where(plan.keep[:, :, 1:, 1:], 0).sum(-1)
    assert (kept >= top_p - 1e-5).all()
    if pattern not in CHOOSES_BY_OUTPUT:
        # And no block too many: without the smallest one that may go, a row falls short.
        free = plan.keep[:, :, 1:, 1:] & ~always
        smallest = mass.where(free, 2.0).amin(-1)
        without = (kept - smallest)[free.sum(-1) > 1] - mass.where(always, 0).sum(-1)[free.sum(-1) > 1]
        assert (without < top_p + 1e-5).all()


def test_max_density_caps_and_is_counted(pattern):
    layout = TokenLayout(GRID, prefix=9)
    _, free = make(pattern, layout, Budget(top_p=0.95, floor=0.0))
    _, plan = make(pattern, layout, Budget(top_p=0.95, floor=0.0, max_density=0.15))
    video = plan.keep[:, :, 1:, 1:].float()
    share = torch.einsum("bhqk,bhk,bhq->bh", video, *(o.sizes()[:, :, 1:].float() for o in (plan.keys, plan.queries)))
    largest = plan.keys.sizes()[:, :, 1:].max() / layout.video
    # A static pattern always sees its own place, and some the first frame.
    least = 1 / GRID[0] if pattern in SEES_FIRST_FRAME else 0
    assert (share / layout.video**2).max() <= max(0.15, least + 2 * largest) + largest
    assert plan.density() < free.density()
    if pattern not in STATIC:
        assert plan.capped.any() and not free.capped.any()


def test_more_budget_keeps_more_and_errs_less(pattern):
    layout = TokenLayout(GRID, prefix=9)
    budgets = [Budget(top_p=p, floor=0.0, max_density=d) for p, d in ((0.3, 0.2), (0.7, 0.4), (0.95, 0.7), (1.0, 1.0))]
    call, _ = make(pattern, layout, budgets[0])
    dense = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v)
    plans = [make(pattern, layout, budget)[1] for budget in budgets]
    densities = [plan.density().item() for plan in plans]
    errors = [((run(call, plan) - dense).norm() / dense.norm()).item() for plan in plans]
    assert densities == sorted(densities) and densities[0] < densities[-1]
    assert errors == sorted(errors, reverse=True) and errors[0] > errors[-1]


def test_text_content_moves_no_video_block(pattern):
    if pattern in CHOOSES_BY_OUTPUT:
        return
    layout = TokenLayout(GRID, prefix=7)
    q, k, v = qkv(layout)
    plans = []
    for text in (0.0, 100.0):
        q, k, v = (x.clone() for x in (q, k, v))
        for x in (q, k, v):
            x[:, :, :7] = text
        spending = Budget(top_p=0.6, floor=0.0, max_density=0.6).spending()
        plans.append(PATTERNS[pattern].plan(make_call(q, k, v, layout), spending))
    assert torch.equal(plans[0].keep, plans[1].keep)
    assert torch.equal(plans[0].keys.tokens, plans[1].keys.tokens)


def test_a_batch_equals_its_rows_apart(pattern):
    layout = TokenLayout(GRID)
    q, k, v = qkv(layout, batch=2)
    budget = Budget(top_p=0.6, floor=0.0, max_density=0.5)
    both = PATTERNS[pattern].plan(make_call(q, k, v, layout, branches=("a", "b")), budget.spending())
    for row in range(2):
        part = slice(row, row + 1)
        one = PATTERNS[pattern].plan(make_call(q[part], k[part], v[part], layout), budget.spending())
        assert torch.equal(both.keep[row], one.keep[0])
        assert all(
            torch.equal(a, b)
            for h in range(3)
            for a, b in zip(members(both.keys, row, h), members(one.keys, 0, h), strict=True)
        )


def test_equal_inputs_give_equal_plans_and_no_random_number_is_drawn(pattern):
    state = torch.get_rng_state()
    first, second = (make(pattern, TokenLayout(GRID), PRESETS["faithful"])[1] for _ in range(2))
    state_after = torch.get_rng_state()
    assert torch.equal(first.keep, second.keep) and torch.equal(first.queries.tokens, second.queries.tokens)
    assert torch.equal(state, state_after)


def test_degenerate_tokens(pattern):
    layout = TokenLayout(GRID)
    for x in (torch.ones(1, 2, layout.total, 64), torch.zeros(1, 2, layout.total, 64)):
        call = make_call(x, x, x, layout)
        out = run(call, PATTERNS[pattern].plan(call, Budget(top_p=0.6, floor=0.0, max_density=0.4).spending()))
        assert_close(out, x, units=64)


@pytest.mark.parametrize("grid", [(21, 45, 80), GRID], ids=str)
@pytest.mark.parametrize("budget", [PRESETS["faithful"], Budget(top_p=1.0, max_density=0.3)], ids=["preset", "0.3"])
def test_static_patterns_have_the_density_they_aim_at(pattern, grid, budget):
    """Below 0.7 in any case. With tokens that say nothing, so that top-p cannot help."""
    if pattern not in STATIC:
        return
    layout = TokenLayout(grid)
    # One row per block is enough at full size: the map depends on the layout alone.
    x = torch.zeros(1, 1, layout.total, 64)
    plan = PATTERNS[pattern].plan(make_call(x, x, x, layout), budget.spending())
    target = 0.3 if budget.max_density == 0.3 else 0.5
    assert 0.5 * target < plan.density() < target + 0.02


def test_what_depends_on_the_layout_is_made_once_in_a_run(pattern, monkeypatch):
    cache, static = TensorCache(), StaticPlans()
    made = []
    real = StaticPlans.get
    monkeypatch.setattr(
        StaticPlans, "get", lambda self, key, make: real(self, key, lambda: (made.append(key), make())[1])
    )
    q, k, v = qkv(TokenLayout(GRID))
    for _ in range(3):
        call = make_call(q, k, v, TokenLayout(GRID), cache=cache, static=static)
        PATTERNS[pattern].plan(call, PRESETS["faithful"].spending())
    once = len(made)
    # A pattern that goes by the tokens alone has nothing of the kind.
    assert once == 1 or (once == 0 and pattern not in STATIC)
    call = make_call(*qkv(TokenLayout((4, 7, 11))), TokenLayout((4, 7, 11)), cache=TensorCache(), static=static)
    PATTERNS[pattern].plan(call, PRESETS["faithful"].spending())
    assert len(made) == 2 * once


def test_token_order_moves_the_blocks_of_those_that_use_it(pattern):
    budget = Budget(top_p=0.6, floor=0.0, max_density=0.5)
    tokens_of = {
        order: make(pattern, TokenLayout(GRID), budget, token_order=order)[1].keys.tokens
        for order in ("auto", "raster", "cube", "morton")
    }
    assert torch.equal(tokens_of["auto"], tokens_of["cube"])
    assert torch.equal(tokens_of["raster"], tokens_of["morton"]) != PATTERNS[pattern].token_order
