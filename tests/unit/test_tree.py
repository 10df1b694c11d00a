"""Blocks that are leaves of principal axis trees: full ones, by content alone, weighed by the other side."""

import math
from pathlib import Path

import pytest
import torch

from dit_accel.accel.attention import executor
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout, spread
from dit_accel.accel.attention.memory import StaticPlans, TensorCache
from dit_accel.accel.attention.planners import PATTERNS, trees
from dit_accel.accel.attention.planners.trees import SAMPLES, second_moment, tree_blocks
from dit_accel.accel.bench.inputs import captured_inputs
from dit_accel.kernels.gather import CHUNK, TALL
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.oracle import members

CAPTURE = Path(__file__).resolve().parents[1] / "golden" / "small_capture.safetensors"
TILE = 128  # queries that the attention kernel multiplies at once


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(seed, dim=64):
    """A smooth random field of 8 x 14 x 14 tokens in two heads: [1, 2, 1568, dim]."""
    coarse = torch.nn.functional.interpolate(rand(2, dim, 2, 3, 3, seed=seed), (8, 14, 14), mode="trilinear")
    return 2 * coarse.flatten(2).mT[None] + 0.5 * rand(1, 2, 1568, dim, seed=seed + 1)


def error(call, dense, pattern, density):
    """Relative L2 where every row keeps `density` of the keys."""
    plan = PATTERNS[pattern].plan(call, Budget(top_p=1.0, floor=0.0, max_density=density).spending())
    assert plan.density() == pytest.approx(density, abs=0.03)
    out = executor.execute(call.q, call.k, call.v, plan, scale=call.scale, backend="reference")
    return float((out - dense).norm() / dense.norm())


@pytest.mark.parametrize(
    ("layout", "query", "key"),
    [
        (TokenLayout((4, 20, 20)), 128, 64),
        (TokenLayout((4, 20, 20), prefix=9, suffix=4), 128, 64),
        (TokenLayout((1, 30, 29), prefix=3), 64, 32),
        (TokenLayout((5, 7, 11), suffix=5), 32, 16),
        (TokenLayout((2, 1, 1), prefix=1), 32, 16),
    ],
    ids=str,
)
def test_blocks_are_full_but_for_the_last(layout, query, key):
    x = rand(2, 2, layout.total, 64)
    orders = tree_blocks(make_call(x, rand(*x.shape, seed=1), x, layout))
    others = [*range(layout.prefix), *range(layout.prefix + layout.video, layout.total)]
    for order, size in zip(orders, (query, key), strict=True):
        count = math.ceil(layout.video / size)
        expected = [layout.extra, *[size] * (count - 1), layout.video - size * (count - 1)]
        assert torch.equal(order.sizes(), torch.tensor(expected).expand(2, 2, -1))
        assert order.blocks == 1 + count
        assert sorted(order.index.flatten().tolist()) == [0, 1, 2, 3], "an order for every head"
        for b in range(2):
            for h in range(2):
                assert members(order, b, h)[0].tolist() == others
        assert (order.tokens.sort(1).values == torch.arange(layout.total)).all()


def test_key_blocks_fill_tall_chunks_wherever_there_is_more_than_one():
    layout = TokenLayout((4, 20, 20), prefix=9)
    x = rand(1, 1, layout.total, 64)
    assert tree_blocks(make_call(x, x, x, layout))[1].tall_chunks == 1 + 1600 // TALL


def test_tokens_around_the_video_move_no_block():
    video = rand(1, 2, 1600, 64), rand(1, 2, 1600, 64, seed=1)
    alone = tree_blocks(make_call(*video, video[0], TokenLayout((4, 20, 20))))
    whole = [torch.cat([100 * rand(1, 2, 9, 64), x, torch.full((1, 2, 4, 64), -50.0)], dim=2) for x in video]
    among = tree_blocks(make_call(*whole, whole[0], TokenLayout((4, 20, 20), prefix=9, suffix=4)))
    for one, other in zip(alone, among, strict=True):
        assert torch.equal(one.tokens + 9, other.tokens[:, 13:])


@pytest.mark.parametrize("tokens", [1, 300, SAMPLES, SAMPLES + 700])
def test_second_moment(tokens):
    x = 3 * rand(1, 2, tokens, 64) + 1
    moment = second_moment(x)
    assert moment.dtype == torch.float32 and moment.shape == (1, 2, 64, 64)
    some = x if tokens <= SAMPLES else x[:, :, spread(tokens, SAMPLES, x.device)]
    for h in range(2):
        expected = sum(token.outer(token) for token in some[0, h].double()) / some[0, h].double().square().sum()
        assert_close(moment[0, h], expected, units=64)


def test_second_moment_of_half_precision_and_of_nothing():
    x = rand(1, 2, 300, 64) * 200  # squares beyond fp16
    assert_close(second_moment(x.half()), second_moment(x.half().float()))
    assert (second_moment(torch.zeros(1, 2, 5, 64)) == 0).all()


@pytest.mark.parametrize("side", [0, 1], ids=["queries", "keys"])
def test_a_side_is_cut_by_what_the_other_asks_for(side):
    """Each has groups of a block along a channel that the other has too, and a louder channel that the other lacks."""
    layout = TokenLayout((4, 26, 16))  # 13 and 26 blocks
    pair = [0.3 * rand(1, 1, 1664, 64, seed=seed) for seed in (0, 1)]
    size = (128, 64)[side]
    group = torch.arange(1664)[torch.randperm(1664, generator=torch.Generator().manual_seed(2))] // size
    pair[side][..., 7] += 10 * group
    pair[side][..., 5] *= 3000
    pair[1 - side][..., 5] = 0
    found = members(tree_blocks(make_call(*pair, pair[0], layout))[side], 0, 0)[1:]
    assert [len(group[block].unique()) for block in found] == [1] * math.ceil(1664 / size)
    pair[1 - side][..., 5] = 100
    found = members(tree_blocks(make_call(*pair, pair[0], layout))[side], 0, 0)[1:]
    assert max(len(group[block].unique()) for block in found) > 5


def test_nothing_is_remembered_but_what_all_calls_share(monkeypatch):
    layout, cache, static = TokenLayout((5, 7, 11), prefix=3), TensorCache(), StaticPlans()
    made, cut = [], trees._cut
    monkeypatch.setattr(trees, "_cut", lambda *args: made.append(args) or cut(*args))
    budget = Budget(top_p=0.6, floor=0.0)
    for seed in range(3):
        q, k, v = (rand(1, 2, layout.total, 64, seed=3 * seed + i) for i in range(3))
        later = PATTERNS["tree"].plan(make_call(q, k, v, layout, cache=cache, static=static), budget.spending())
        assert len(cache) == 0 and len(made) == 2, "one for queries and one for keys"
    first = PATTERNS["tree"].plan(make_call(q, k, v, layout), budget.spending())
    assert torch.equal(later.keep, first.keep) and torch.equal(later.keys.tokens, first.keys.tokens)


def test_several_plans_of_a_call_share_the_trees(monkeypatch):
    calls, real = [], trees.tree_order
    monkeypatch.setattr(trees, "tree_order", lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    layout = TokenLayout((5, 7, 11))
    x = rand(1, 2, layout.total, 64)
    call = make_call(x, x, x, layout)
    shared = type(call)(**{**vars(call), "shared": {}})
    plans = [PATTERNS["tree"].plan(shared, Budget(top_p=p, floor=0.0).spending()) for p in (0.3, 0.9)]
    assert len(calls) == 2 and plans[0].keys.tokens is plans[1].keys.tokens
    assert plans[0].density() < plans[1].density()


@pytest.mark.parametrize("density", [0.2, *(pytest.param(x, marks=pytest.mark.thorough) for x in (0.1, 0.3))])
def test_on_a_trained_model_it_errs_less_than_boxes_of_the_video(density):
    errors = {"tree": 0.0, "pooled": 0.0}
    for inputs in captured_inputs(CAPTURE):
        call = make_call(*(x.float() for x in inputs[:3]), inputs.layout)
        dense = torch.nn.functional.scaled_dot_product_attention(call.q, call.k, call.v)
        for pattern in errors:
            errors[pattern] += error(call, dense, pattern, density)
    assert errors["tree"] < 0.93 * errors["pooled"], errors


def test_where_like_tokens_lie_does_not_matter():
    """Boxes suit a smooth field; with its tokens dealt out anew they do not, and trees are what they were."""
    layout = TokenLayout((8, 14, 14))
    q, k, v = smooth(0), smooth(0) + 0.3 * smooth(2), smooth(4)
    dealt = torch.randperm(1568, generator=torch.Generator().manual_seed(6))
    found = {}
    for name, (a, b, c) in {"field": (q, k, v), "dealt": (q[:, :, dealt], k[:, :, dealt], v[:, :, dealt])}.items():
        call = make_call(a, b, c, layout)
        dense = torch.nn.functional.scaled_dot_product_attention(a, b, c)
        found |= {(pattern, name): error(call, dense, pattern, 0.25) for pattern in ("tree", "pooled")}
    assert found["tree", "dealt"] == pytest.approx(found["tree", "field"], rel=0.15)
    assert found["pooled", "field"] < 0.6 * found["pooled", "dealt"]
    assert found["tree", "dealt"] < 0.9 * found["pooled", "dealt"]


def test_tiles_multiply_what_counts():
    """Products that the kernel makes for each kept pair, in tiles of 128 queries and chunks of keys."""
    layout = TokenLayout((8, 14, 14))
    q, k = smooth(0), smooth(0) + 0.3 * smooth(2)
    per_pair = {}
    for pattern in ("tree", "svg2"):
        spending = Budget(top_p=1.0, floor=0.0, max_density=0.3).spending()
        plan = PATTERNS[pattern].plan(make_call(q, k, k, layout), spending)
        chunk = TALL if plan.keys.tall_chunks else CHUNK
        useful, made = (
            torch.einsum("bhqk,bhq,bhk->", plan.keep.double(), *(x.double() for x in sizes))
            for sizes in (
                (plan.queries.sizes(), plan.keys.sizes()),
                [-(-order.sizes() // edge) * edge for order, edge in ((plan.queries, TILE), (plan.keys, chunk))],
            )
        )
        per_pair[pattern] = float(made / useful)
    assert 1 <= per_pair["tree"] < 1.08
    assert per_pair["svg2"] > 1.8
