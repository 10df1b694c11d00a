"""The SVG2 planner: clusters, estimated mass, orders, and that nothing is shared that should not be."""

import pytest
import torch

from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.layout import TokenLayout
from dit_accel.accel.attention.memory import TensorCache
from dit_accel.accel.attention.plan import SparsePlan
from dit_accel.accel.attention.planners import clusters as clusters_module
from dit_accel.accel.attention.planners import svg2
from dit_accel.accel.attention.planners.clusters import KEYS, QUERIES, kmeans_clusters, sample_centroids
from dit_accel.accel.attention.planners.select import estimated_mass
from dit_accel.tests.support.calls import make_call
from dit_accel.tests.support.closeness import assert_close

SCALE = 64**-0.5


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clustered(batch=1, heads=2, tokens=600, dim=64, seed=0):
    """Tokens around 20 centres of uneven popularity, as real keys lie."""
    centres = 3 * rand(heads, 20, dim, seed=seed)
    draw = torch.rand(batch, heads, tokens, generator=torch.Generator().manual_seed(seed)).square()
    labels = (draw * 20).long()
    noise = rand(batch, heads, tokens, dim, seed=seed + 1)
    return centres[torch.arange(heads)[None, :, None], labels] + noise


def make_plan(q, k, layout, budget=None, cache=None, branches=("a",)) -> SparsePlan:
    call = make_call(q, k, k, layout, cache=cache, branches=branches)
    return svg2.plan(call, (budget or Budget(top_p=0.7, floor=0.0)).spending())


@pytest.mark.parametrize(
    ("tokens", "queries", "keys"),
    [
        (1, 1, 1),
        (15, 1, 1),
        (100, 6, 6),
        (1024, 16, 32),
        (4096, 64, 128),
        (12288, 192, 384),
        (32760, 257, 520),
        (75600, 295, 994),
        (119056, 465, 1566),
    ],
)
def test_cluster_counts(tokens, queries, keys):
    assert (QUERIES.count(tokens), KEYS.count(tokens)) == (queries, keys)


def test_start_is_distinct_tokens_of_the_whole_sequence():
    x = torch.arange(97.0).view(1, 1, 97, 1)
    start = sample_centroids(x, 16).flatten()
    assert start.unique().numel() == 16
    assert start.min() < 97 / 16
    assert start.max() > 97 - 97 / 16


def test_kmeans_invariants():
    x = clustered()
    start = sample_centroids(x, 24)
    losses = []
    for iterations in (1, 2, 4, 8):
        clusters = kmeans_clusters(x, start, iterations, backend="reference")
        labels = torch.empty(x.shape[:3], dtype=torch.long)
        for h in range(2):
            sizes = clusters.sizes()[0, h].long()
            labels[0, h, clusters.order[0, h]] = torch.arange(24).repeat_interleave(sizes)
        assert (clusters.sizes().sum(-1) == x.shape[2]).all()
        assert (clusters.order.sort(-1).values == torch.arange(x.shape[2])).all()
        for h in range(2):
            for c in range(24):
                members = x[0, h][labels[0, h] == c]
                if len(members):
                    assert_close(clusters.centroids[0, h, c], members.mean(0))
        own = clusters.centroids[0, torch.arange(2)[:, None], labels[0]]
        losses.append((x[0] - own).square().sum().item())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("tokens", [5, 16, 17, 33, 250])
def test_awkward_token_counts(tokens):
    q, k = clustered(tokens=tokens + 3), clustered(tokens=tokens + 3, seed=5)
    plan = make_plan(q, k, TokenLayout((tokens, 1, 1), prefix=2, suffix=1))
    assert plan.keep.any(-1).all()
    assert 0 < plan.density() <= 1


def test_identical_tokens_and_zero_heads():
    for x in (torch.ones(1, 2, 300, 64), torch.zeros(1, 2, 300, 64)):
        plan = make_plan(x, x, TokenLayout((3, 10, 10)))
        sizes = plan.keys.sizes()
        assert (sizes.sum(-1) == 300).all()
        # The rows of non-empty query clusters attend something that exists.
        kept = (plan.keep.long() * sizes.unsqueeze(-2)).sum(-1)
        assert (kept[plan.queries.sizes() > 0] > 0).all()


def test_mass_is_size_weighted():
    x = clustered(tokens=200)
    clusters = kmeans_clusters(x, sample_centroids(x, 8), 2, backend="reference")
    scale = SCALE / 20  # keeps the plain exponentials below finite
    mass = estimated_mass(clusters.centroids, clusters.centroids, clusters.sizes(), scale)
    assert_close(mass.sum(-1), torch.ones_like(mass.sum(-1)), units=8)
    scores = clusters.centroids @ clusters.centroids.transpose(-1, -2) * scale
    weight = clusters.sizes().unsqueeze(-2) * scores.exp()
    assert_close(mass, weight / weight.sum(-1, keepdim=True), units=64)


def test_text_is_the_first_block_both_ways():
    layout = TokenLayout((6, 10, 10), prefix=7, suffix=5)
    q, k = clustered(tokens=layout.total), clustered(tokens=layout.total, seed=4)
    plan = make_plan(q, k, layout)
    others = {*range(7), *range(607, 612)}
    for order in (plan.queries, plan.keys):
        assert (order.offsets[:, 0] == 0).all()
        assert (order.offsets[:, 1] == 12).all()
        assert (order.offsets[:, -1] == layout.total).all()
        assert all(set(row[:12].tolist()) == others for row in order.tokens)
        assert (order.tokens.sort(-1).values == torch.arange(layout.total)).all()
    assert plan.keep[:, :, 0].all()
    assert plan.keep[:, :, :, 0].all()
    assert not plan.keep.all()


def test_text_content_does_not_move_video_clusters():
    layout = TokenLayout((6, 10, 10), prefix=7)
    q = clustered(tokens=layout.total)
    other = q.clone()
    other[:, :, :7] = 100.0
    first, second = make_plan(q, q, layout), make_plan(other, other, layout)
    assert torch.equal(first.keys.tokens, second.keys.tokens)
    assert torch.equal(first.keep, second.keep)


def test_budget_moves_density():
    layout = TokenLayout((6, 10, 10))
    q, k = clustered(), clustered(seed=3)
    densities = [make_plan(q, k, layout, Budget(top_p=p, floor=0.0)).density() for p in (0.2, 0.5, 0.8, 0.95)]
    assert densities == sorted(densities)
    assert densities[0] < densities[-1]
    capped = make_plan(q, k, layout, Budget(top_p=0.95, max_density=0.2))
    assert capped.density() < densities[-1]
    assert capped.capped.any()
    assert make_plan(q, k, layout, Budget(top_p=0.05, floor=1.0)).density() == 1


def test_batch_equals_its_rows_apart():
    layout = TokenLayout((6, 10, 10))
    q, k = clustered(batch=2), clustered(batch=2, seed=3)
    both = make_plan(q, k, layout, branches=("a", "b"))
    for row in range(2):
        one = make_plan(q[row : row + 1], k[row : row + 1], layout)
        assert torch.equal(both.keep[row], one.keep[0])
        assert torch.equal(both.keys.tokens[both.keys.index[row].long()], one.keys.tokens)


def test_branches_warm_start_apart():
    """Alternating two branches over one cache equals two caches, batched or not."""
    layout = TokenLayout((6, 10, 10))
    steps = [(clustered(batch=2, seed=s), clustered(batch=2, seed=s + 50)) for s in range(3)]
    shared, own = TensorCache(), {"a": TensorCache(), "b": TensorCache()}
    for i, (q, k) in enumerate(steps):
        if i == 1:  # this evaluation is batched
            batched = make_plan(q, k, layout, cache=shared, branches=("a", "b"))
        for row, branch in enumerate("ab"):
            qr, kr = q[row : row + 1], k[row : row + 1]
            alone = make_plan(qr, kr, layout, cache=own[branch], branches=(branch,))
            if i == 1:
                keep = batched.keep[row]
            else:
                keep = make_plan(qr, kr, layout, cache=shared, branches=(branch,)).keep[0]
            assert torch.equal(keep, alone.keep[0])


def test_warm_start_is_used(monkeypatch):
    counts = []
    real = clusters_module.kmeans_clusters
    monkeypatch.setattr(
        clusters_module, "kmeans_clusters", lambda x, c, n, **kw: (counts.append(n), real(x, c, n, **kw))[1]
    )
    cache, q = TensorCache(), clustered()
    for _ in range(2):
        make_plan(q, q, TokenLayout((6, 10, 10)), cache=cache)
    assert counts == [8, 8, 2, 2]


PAIR = (torch.zeros(1, 1, 4, 8), torch.zeros(1, 1, 4, 8))  # 256 bytes


def test_cache_obeys_its_byte_budget():
    cache = TensorCache(max_bytes=600)
    for key in "abababcd":
        cache.put(key, PAIR)
        assert cache.bytes == 256 * len(cache) <= 600
    assert [cache.get(key) is not None for key in "abcd"] == [True, True, False, False]
    assert cache.refused == 2
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


def test_a_cycle_of_layers_that_does_not_fit_still_hits():
    cache, hits = TensorCache(max_bytes=10 * 256), 0
    for _ in range(5):
        for layer in range(12):
            hits += cache.get(layer) is not None
            cache.put(layer, PAIR)
    assert hits == 4 * 10


def test_pairs_that_nobody_asks_for_leave():
    cache = TensorCache(max_bytes=4 * 256)
    for layer in range(4):
        cache.put(("old", layer), PAIR)
    for _ in range(9):
        for layer in range(4):
            cache.put(("new", layer), PAIR)
    assert all(cache.get(("new", layer)) is not None for layer in range(4))


def test_a_pair_larger_than_the_budget_is_not_kept():
    cache = TensorCache(max_bytes=100)
    cache.put("a", PAIR)
    assert (len(cache), cache.bytes) == (0, 0)


def test_unknown_branches_start_cold_and_leave_nothing():
    layout, cache = TokenLayout((6, 10, 10)), TensorCache()
    q = clustered()
    plans = [make_plan(q, q, layout, cache=cache, branches=()) for _ in range(2)]
    assert torch.equal(plans[0].keep, plans[1].keep)
    assert len(cache) == 0


def test_svg2_beats_random_blocks_at_equal_density():
    from dit_accel.accel.attention import executor

    layout = TokenLayout((12, 10, 10))
    q, k, v = 0.2 * clustered(tokens=1200), clustered(tokens=1200, seed=0), clustered(tokens=1200, seed=8)
    plan = make_plan(q, k, layout, Budget(top_p=0.6, floor=0.0))
    shuffle = torch.randperm(plan.keep.shape[-1] - 1, generator=torch.Generator().manual_seed(0)) + 1
    random_keep = plan.keep.clone()
    random_keep[..., 1:] = plan.keep[..., shuffle]
    other = SparsePlan(plan.queries, plan.keys, random_keep)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=SCALE)

    def error(p):
        out = executor.execute(q, k, v, p, scale=SCALE, backend="reference")
        return ((out - dense).norm() / dense.norm()).item()

    assert 0.05 < plan.density() < 0.9
    assert error(plan) < 0.5 * error(other)
