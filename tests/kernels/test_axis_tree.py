"""Principal axis trees: all backends against the definition in fp64, and against exact eigenvectors."""

import pytest
import torch

from dit_accel.kernels.axis_tree import levels, principal_axis, tree_order
from dit_accel.tests.support.splits import nodes_of, wrong_splits

BACKENDS = ["triton", "torch", "reference"]
both_backends = pytest.mark.parametrize("backend", BACKENDS)


def tokens(length=150, batch=1, heads=2, dim=64, dtype=torch.float32, seed=0):
    """Every (batch, head) stretched along axes of its own."""
    random = torch.Generator().manual_seed(seed)
    stretch = torch.rand(batch, heads, 1, dim, generator=random).pow(3) * 4
    return (torch.randn(batch, heads, length, dim, generator=random) * stretch).to(dtype)


def weights(x, seed=1):
    """Symmetric and positive, another for every (batch, head)."""
    asked = torch.randn(*x.shape[:2], 200, x.shape[3], generator=torch.Generator().manual_seed(seed))
    return asked.mT @ asked / asked.square().sum((2, 3))[..., None, None]


def in_order(batch, heads, length):
    return torch.arange(length, dtype=torch.int32).expand(batch, heads, -1)


def permutes(order) -> bool:
    return order.dtype == torch.int32 and torch.equal(order.sort(2).values, in_order(*order.shape))


def check(x, weight, order, size):
    """All splits of all trees by the definition; in a leaf the tokens are in their own order."""
    assert permutes(order)
    assert all(torch.equal(leaf, leaf.sort(2).values) for leaf in order.split(size, dim=2))
    assert wrong_splits(x, weight, order, size) == []


@both_backends
@pytest.mark.parametrize(
    ("length", "size", "dim"), [(300, 32, 64), (256, 64, 64), (333, 128, 128), (65, 64, 64), (90, 16, 64)]
)
def test_every_split_is_where_the_definition_has_it(backend, length, size, dim):
    x = tokens(length, dim=dim)
    check(x, weights(x), tree_order(x, weights(x), size, backend=backend), size)


@pytest.mark.parametrize(("length", "size", "batch"), [(150, 32, 2), (700, 128, 1)])
def test_backends_agree(length, size, batch):
    """700 tokens: more than axes are found from."""
    x = tokens(length, batch=batch)
    first, *others = (tree_order(x, weights(x), size, backend=backend) for backend in BACKENDS)
    assert all(torch.equal(first, other) for other in others)


@both_backends
@pytest.mark.parametrize("length", [1, 5, 64])
def test_one_leaf_keeps_its_order(backend, length):
    x = tokens(length)
    assert torch.equal(tree_order(x, weights(x), 64, backend=backend), in_order(1, 2, length))


@both_backends
def test_every_pair_has_a_tree_of_its_own(backend):
    x = tokens(batch=2)
    weight = weights(x)
    order = tree_order(x, weight, 64, backend=backend)
    assert len({tuple(one) for one in order.flatten(0, 1).tolist()}) == 4
    for b in range(2):
        for h in range(2):
            one = x[b : b + 1, h : h + 1], weight[b : b + 1, h : h + 1]
            assert torch.equal(tree_order(*one, 64, backend=backend)[0, 0], order[b, h])


@both_backends
def test_views(backend):
    """[B, N, H, D] seen as [B, H, N, D] and the video amidst a longer sequence; every other token; a weight that is a
    view itself."""
    x = tokens()
    weight = weights(x)
    expected = tree_order(x, weight, 64, backend=backend)
    packed, double = torch.full((1, 180, 2, 64), torch.nan), torch.full((1, 2, 300, 64), torch.nan)
    packed[:, 17:167], double[:, :, ::2] = x.transpose(1, 2), x
    for view in (packed.transpose(1, 2)[:, :, 17:167], double[:, :, ::2]):
        assert torch.equal(tree_order(view, weight, 64, backend=backend), expected)
    wide = torch.full((1, 2, 64, 128), torch.nan)
    wide[..., ::2] = weight
    assert torch.equal(tree_order(x, wide[..., ::2], 64, backend=backend), expected)


@both_backends
def test_half_precision(backend):
    x = tokens(dtype=torch.float16)
    check(x, weights(x), tree_order(x, weights(x), 32, backend=backend), 32)


@both_backends
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_tokens_that_do_not_differ_keep_their_order(backend, value):
    x = torch.full((1, 2, 150, 64), value)
    assert torch.equal(tree_order(x, weights(x), 64, backend=backend), in_order(1, 2, 150))


@both_backends
def test_equal_tokens_keep_their_order(backend):
    """Three kinds of tokens, whose borders fall within leaves."""
    kind = torch.randint(3, (200,), generator=torch.Generator().manual_seed(2))
    x = tokens(3)[:, :, kind]
    order = tree_order(x, weights(x), 32, backend=backend)
    assert permutes(order)
    for one in order[0]:
        for which in range(3):
            members = one[kind[one.long()] == which]
            assert torch.equal(members, members.sort().values)


@both_backends
def test_where_nothing_is_asked_for_nothing_differs(backend):
    x = tokens()
    assert torch.equal(tree_order(x, torch.zeros(1, 2, 64, 64), 64, backend=backend), in_order(1, 2, 150))


@both_backends
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_a_permutation_whatever_the_tokens_hold(backend, bad):
    x = tokens()
    weight = weights(x)
    spoilt = x.clone()
    spoilt[0, 0, 40], spoilt[0, 0, 77, 3] = bad, -bad
    order = tree_order(spoilt, weight, 64, backend=backend)
    assert permutes(order)
    assert torch.equal(order[:, 1], tree_order(x, weight, 64, backend=backend)[:, 1]), "another head has changed"
    assert permutes(tree_order(x, weight * bad, 64, backend=backend))


@both_backends
def test_the_axis_is_the_eigenvector(backend):
    """Of root weight C root weight, whose largest eigenvalue stands out: two groups lie apart along one direction, and
    the tokens differ more along another, which counts little."""
    random = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(1, 2, 64, 64, generator=random).double()).Q
    counts = torch.full((64,), 0.01).double()
    counts[0], counts[1] = 1.0, 1e-6
    inner = 0.3 * torch.randn(1, 2, 160, 64, generator=random).double()
    inner[..., 0] += 8 * (torch.randperm(160, generator=random) < 64)  # 2 leaves of 5, as in a half
    inner[..., 1] *= 100
    x = inner @ basis.mT
    weight, root = ((basis * some) @ basis.mT for some in (counts, counts.sqrt()))
    centred = x - x.mean(2, keepdim=True)
    vector = root @ torch.linalg.eigh(root @ centred.mT @ centred @ root).eigenvectors[..., -1:]
    found = principal_axis(x.float(), weight.float()).double()
    assert (torch.nn.functional.cosine_similarity(found, vector[..., 0], dim=-1).abs() > 1 - 1e-6).all()
    order = tree_order(x.float(), weight.float(), 32, backend=backend)
    for h in range(2):
        lower = {*order[0, h, :64].tolist()}
        exact = (x[0, h] @ vector[0, h, :, 0]).argsort()
        assert lower in ({*exact[:64].tolist()}, {*exact[-64:].tolist()})


@both_backends
def test_large_means_do_not_spoil_the_axis(backend):
    """As keys have them: thirty times as large as what the tokens differ by."""
    x = tokens()
    x = x + 30 * x.std() * torch.randn(1, 2, 1, 64, generator=torch.Generator().manual_seed(4))
    check(x, weights(x), tree_order(x, weights(x), 32, backend=backend), 32)


@both_backends
@pytest.mark.parametrize("scale", [2.0**-12, 2.0**15])
def test_the_size_of_tokens_does_not_matter(backend, scale):
    """Neither do products of matrices overflow, nor vanish."""
    x = tokens()
    whole = tree_order(x, weights(x), 64, backend=backend)
    assert torch.equal(tree_order(x * scale, weights(x), 64, backend=backend), whole)


@both_backends
def test_a_direction_that_nobody_asks_for_is_ignored(backend):
    """Five groups of a leaf each, and a channel that is far louder than what sets them apart."""
    random = torch.Generator().manual_seed(5)
    group = torch.arange(160)[torch.randperm(160, generator=random)] // 32
    x = 0.3 * torch.randn(1, 1, 160, 64, generator=random)
    x[..., 7] += 10 * group
    x[..., 5] *= 3000
    deaf = torch.ones(64)
    deaf[5] = 0
    for weight, groups_of_a_leaf in ((deaf, 1), (torch.ones(64), 5)):
        order = tree_order(x, weight.diag()[None, None], 32, backend=backend)
        assert [len(group[leaf].unique()) for leaf in order[0, 0].long().split(32)] == [groups_of_a_leaf] * 5


@both_backends
def test_equal_inputs_give_equal_results_and_no_random_number_is_drawn(backend):
    x = tokens()
    state, kept = torch.get_rng_state(), x.clone()
    first, second = (tree_order(one, weights(x), 64, backend=backend) for one in (x, x.clone()))
    assert torch.equal(first, second) and torch.equal(x, kept)
    assert torch.equal(state, torch.get_rng_state())


def halve(scores, leaves, level, size, step):
    """The kernel alone, on tokens in reverse order: what it was given, and what it made of it."""
    from dit_accel.kernels.triton import axis_tree as module

    pairs, length = scores.shape
    order = in_order(1, pairs, length)[0].flip(1).contiguous()
    halved = torch.full_like(order, -1)
    nodes = 1 << level
    module._halve[(nodes, pairs)](scores, order, halved, length, leaves, level, size, STEP=step, DIGIT=module.DIGIT)
    return order, halved


@pytest.mark.parametrize("level", [0, 2])
@pytest.mark.parametrize("step", [256, 1024])
def test_halves_of_large_nodes(step, level):
    """Several steps to a node. Scores of both signs and of all sizes; few different ones, 0 and -0 among them, which
    are equal; most of them alike, so that those at the border lie in all steps."""
    random = torch.Generator().manual_seed(6)
    scores = torch.randn(3, 2500, generator=random)
    scores[0] *= 10.0 ** torch.randint(-40, 38, (2500,), generator=random)
    scores[1] = torch.randint(-2, 3, (2500,), generator=random) * scores[1].sign()
    scores[2] = torch.where(torch.rand(2500, generator=random) < 0.9, -7.0, scores[2])
    leaves = -(-2500 // 64)
    order, halved = halve(scores, leaves, level, 64, step)
    for row, before, after in zip(scores, order, halved, strict=True):
        for begin, middle, end in nodes_of(leaves, level):
            ranked = row[begin * 64 : end * 64].sort(stable=True).indices + begin * 64
            below, above = (part.sort().values for part in ranked.tensor_split([(middle - begin) * 64]))
            assert torch.equal(after[begin * 64 : end * 64], before[torch.cat([below, above])])


def test_halves_of_scores_that_are_no_numbers():
    scores = torch.randn(2, 700, generator=torch.Generator().manual_seed(7))
    scores[0, ::3], scores[0, 1::5] = torch.nan, -torch.inf
    scores[1] = -torch.nan
    _, halved = halve(scores, 11, 1, 64, 256)
    assert permutes(halved[None])


def test_a_tree_whose_nodes_take_several_steps_and_then_one():
    x = tokens(1200, heads=1)
    check(x, weights(x), tree_order(x, weights(x), 256, backend="triton"), 256)


@pytest.mark.parametrize(
    ("length", "size", "expected"),
    [(1, 64, (1, 0)), (64, 64, (1, 0)), (65, 64, (2, 1)), (75_600, 128, (591, 10)), (75_600, 64, (1182, 11))],
)
def test_levels(length, size, expected):
    assert levels(length, size) == expected
