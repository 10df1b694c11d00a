"""Nearest centroids and block means: both backends against brute force, and the invariants of Lloyd's algorithm."""

import pytest
import torch

from dit_accel.kernels import kmeans
from dit_accel.kernels.block_mean import block_mean
from dit_accel.kernels.group import group
from dit_accel.tests.support.closeness import assert_close

pytestmark = pytest.mark.parametrize("backend", ["triton", "torch", "reference"])


def tokens(length=333, dim=64, dtype=torch.float32, packed=False, seed=0):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, length, 3, dim, generator=random).transpose(1, 2)
    return (x if packed else x.contiguous()).to(dtype)


def distances(x, centroids):
    return torch.cdist(x.double(), centroids.double()).square()


def mean(x, order, offsets, previous, backend):
    problems = torch.arange(x.shape[0] * x.shape[1], dtype=torch.int32).view(x.shape[:2])
    return block_mean(x, order.flatten(0, 1), offsets.flatten(0, 1), problems, empty=previous, backend=backend)


def step(x, centroids, backend):
    labels = kmeans.assign(x, centroids, backend=backend)
    order, offsets = group(labels, centroids.shape[2], backend="reference")
    return labels, offsets, mean(x, order, offsets, centroids, backend)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("clusters", [1, 7, 100])
def test_assign_finds_the_nearest(backend, dim, clusters):
    x = tokens(dim=dim, packed=True)
    centroids = x[:, :, torch.randperm(333)[:clusters]] + 0.1
    labels = kmeans.assign(x, centroids, backend=backend)
    assert labels.shape == x.shape[:3] and labels.dtype == torch.int32
    far = distances(x, centroids)
    found = far.gather(3, labels.long()[..., None])[..., 0]
    assert_close(found, far.amin(3), units=64, dtype=x.dtype)
    assert (labels == far.argmin(3)).float().mean() > 0.999


def test_assign_of_half_precision_tokens(backend):
    x = tokens(dtype=torch.float16)
    centroids = x[:, :, :50].contiguous()
    labels = kmeans.assign(x, centroids, backend=backend)
    assert torch.equal(labels.long(), distances(x, centroids).argmin(3))


def test_ties_go_to_the_lowest_index(backend):
    x = tokens(length=70).round()  # small integers: their products are exact, so equal distances are equal
    centroids = x[:, :, :1].expand(-1, -1, 90, -1).contiguous()
    assert (kmeans.assign(x, centroids, backend=backend) == 0).all()
    # The tied pair lies in different tiles and in different columns of a tile.
    centroids = torch.randn_like(centroids).round() + 100
    centroids[:, :, [40, 5 + 64]] = x[:, :, :1]
    assert (kmeans.assign(x, centroids, backend=backend) == 40).all()


def test_mean_of_clusters_and_an_empty_one_keeps_its_centroid(backend):
    x = tokens(packed=True)
    labels = torch.randint(0, 9, x.shape[:3], generator=torch.Generator().manual_seed(1)).int()
    labels[(labels == 4) | (labels == 7)] = 5
    labels[..., 100] = 7  # a cluster of one token, beside the empty one
    order, offsets = group(labels, 9, backend="reference")
    previous = torch.randn(2, 3, 9, 64)
    for dtype in (torch.int32, torch.int64):
        out = mean(x, order.to(dtype), offsets, previous, backend)
        for b in range(2):
            for h in range(3):
                for c in range(9):
                    members = x[b, h, labels[b, h] == c]
                    expected = members.double().mean(0).float() if len(members) else previous[b, h, c]
                    assert_close(out[b, h, c], expected, units=16)
        assert torch.equal(out[:, :, 4], previous[:, :, 4])


def test_mean_of_half_precision_sums_in_fp32(backend):
    """300 tokens of 2048 + small: a 16-bit sum would lose the small part, or overflow."""
    x = tokens(length=300, dtype=torch.float16) + 2048
    order = torch.arange(300).expand(2, 3, 300)
    offsets = torch.tensor([0, 300], dtype=torch.int32).expand(2, 3, 2)
    out = mean(x, order, offsets, torch.zeros(2, 3, 1, 64, dtype=x.dtype), backend)
    assert_close(out, x.double().mean(2, keepdim=True), units=0.51)


def test_the_objective_never_grows(backend):
    x = tokens()
    centroids = x[:, :, :20].contiguous()
    previous = torch.inf
    for _ in range(4):
        labels, offsets, new = step(x, centroids, backend)
        assert (offsets.diff(dim=-1).sum(-1) == 333).all() and labels.min() >= 0 and labels.max() < 20
        objective = distances(x, centroids).gather(3, labels.long()[..., None]).sum()
        assert objective <= previous * (1 + 16 * torch.finfo(x.dtype).eps)
        previous, centroids = objective, new


def test_equal_inputs_give_equal_results_and_no_random_number_is_drawn(backend):
    x = tokens()
    state = torch.get_rng_state()
    first = step(x, x[:, :, :20].contiguous(), backend)
    second = step(x, x[:, :, :20].contiguous(), backend)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "x",
    [
        pytest.param(tokens(length=5), id="fewer tokens than clusters"),
        pytest.param(torch.ones(2, 3, 70, 64), id="identical tokens"),
        pytest.param(torch.zeros(2, 3, 70, 64), id="zeros"),
        pytest.param(tokens(length=70, dtype=torch.float16) * 6000, id="huge norms"),
        pytest.param(tokens(length=1), id="one token"),
    ],
)
def test_degenerate_tokens(backend, x):
    centroids = x[:, :, torch.arange(33) % x.shape[2]].contiguous()
    labels, offsets, out = step(x, centroids, backend)
    assert torch.isfinite(out).all()
    sizes = offsets.diff(dim=-1)
    assert (sizes.sum(-1) == x.shape[2]).all() and (sizes.amax(-1) > 0).all()
    assert labels.min() >= 0 and labels.max() < 33


def test_labels_stay_in_range_when_tokens_are_nan(backend):
    x = tokens(length=70)
    x[:, :, 3] = torch.nan
    labels = kmeans.assign(x, x[:, :, :40].contiguous(), backend=backend)
    assert labels.min() >= 0 and labels.max() < 40


def test_means_of_shared_orders_that_leave_tokens_out(backend):
    """Two orders for six (batch, head) pairs, a block without tokens, and tokens before the first block and behind the
    last."""
    x = tokens(packed=True)
    order = torch.stack([torch.randperm(333), torch.randperm(333)]).int()
    offsets = torch.tensor([[0, 100, 100, 300], [7, 8, 150, 299]], dtype=torch.int32)
    index = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=torch.int32)
    out = block_mean(x, order, offsets, index, backend=backend)
    for b in range(2):
        for h in range(3):
            row = int(index[b, h])
            for j in range(3):
                members = x[b, h, order[row, offsets[row, j] : offsets[row, j + 1]].long()]
                expected = members.double().mean(0).float() if len(members) else torch.zeros(64)
                assert_close(out[b, h, j], expected, units=16)
