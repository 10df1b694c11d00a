"""Every operation on a GPU: the reference's answers at real sizes, no host sync, bounded memory."""

import pytest
import torch

from dit_accel.kernels import kmeans, registry
from dit_accel.kernels.attention_configs import FORMATS, reads_tall_chunks
from dit_accel.kernels.axis_tree import levels, tree_order
from dit_accel.kernels.block_mean import block_mean
from dit_accel.kernels.block_sparse_attention import Tail, block_sparse_attention
from dit_accel.kernels.compensation_error import log_compensation_error
from dit_accel.kernels.gather import TALL, chunk_layout, chunk_lists, gather_chunks
from dit_accel.kernels.group import group
from dit_accel.kernels.quantise import key_shift, quantise_chunks, value_steps
from dit_accel.kernels.top_p import select_blocks
from dit_accel.tests.support.closeness import assert_close, distance
from dit_accel.tests.support.splits import wrong_splits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

SIZES = [  # heads, tokens, query blocks, key blocks
    pytest.param(3, 333, 7, 12, id="333"),
    pytest.param(4, 9_999, 40, 130, id="9999"),
    pytest.param(2, 75_600, 300, 1000, id="75600"),
]
DTYPES = [torch.float16, torch.bfloat16]


def offsets_of(random, rows, blocks, length):
    """Uneven blocks: cuts drawn anywhere, so sizes 0 and 1 occur."""
    cuts = torch.randint(0, length + 1, (rows, blocks - 1), generator=random, device="cuda").sort(-1).values
    return torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=length).int()


def problem(heads, length, query_blocks, key_blocks, dim, dtype, *, batch=1, density=0.3):
    """q, k, v as ComfyUI hands them over ([B, N, H * D] in memory) and a plan with an order per head."""
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(batch, length, heads, dim, generator=random, device="cuda", dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )
    rows = batch * heads
    shape = (batch, heads, query_blocks, key_blocks)

    def order():
        return torch.rand(rows, length, generator=random, device="cuda").argsort(-1).int()

    index = torch.arange(rows, device="cuda", dtype=torch.int32).view(batch, heads)
    plan = {
        "query_tokens": order(),
        "query_offsets": offsets_of(random, rows, query_blocks, length),
        "query_index": index,
        "key_tokens": order(),
        "key_offsets": offsets_of(random, rows, key_blocks, length),
        "key_index": index,
        "keep": torch.rand(shape, generator=random, device="cuda") < density,
    }
    return (q, k, v), plan


def pool(k, v, plan):
    """The means of the key blocks as a tail."""
    order = plan["key_tokens"], plan["key_offsets"], plan["key_index"]
    sizes = plan["key_offsets"].diff(dim=1)[plan["key_index"]]
    return Tail(*(block_mean(x, *order, backend="reference") for x in (k, v)), sizes.float().log())


@pytest.mark.parametrize("with_tail", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "length", "query_blocks", "key_blocks"), SIZES)
def test_attention_is_as_exact_as_plain_half_precision(heads, length, query_blocks, key_blocks, dim, dtype, with_tail):
    (q, k, v), plan = problem(heads, length, query_blocks, key_blocks, dim, dtype)
    if with_tail:
        plan["tail"] = pool(k, v, plan)
    scale = dim**-0.5
    out, lse = block_sparse_attention(q, k, v, **plan, scale=scale, return_lse=True, backend="triton")
    exact, exact_lse = block_sparse_attention(
        q.float(), k.float(), v.float(), **plan, scale=scale, return_lse=True, backend="reference"
    )
    # The yardstick is what plain 16-bit attention loses against fp32 where everything is kept.
    some = slice(0, 2048)
    plain = torch.nn.functional.scaled_dot_product_attention(q[:, :, some], k, v, scale=scale).float()
    full = torch.nn.functional.scaled_dot_product_attention(q[:, :, some].float(), k.float(), v.float(), scale=scale)
    allowed = 2 * (plain - full).norm() / full.norm()
    assert (out.float() - exact).norm() / exact.norm() <= allowed
    seen = exact_lse > -torch.inf
    assert torch.equal(lse > -torch.inf, seen)
    assert distance(lse[seen], exact_lse[seen]) <= 3e-4


def eight_bit_formats():
    return registry.nearest(FORMATS, registry.architecture(torch.device("cuda")))


@pytest.mark.parametrize("with_tail", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "length", "query_blocks", "key_blocks"), SIZES)
def test_8_bit_attention_is_what_the_reference_says(heads, length, query_blocks, key_blocks, dim, dtype, with_tail):
    (q, k, v), plan = problem(heads, length, query_blocks, key_blocks, dim, dtype)
    if with_tail:
        plan["tail"] = pool(k, v, plan)
    for formats in eight_bit_formats():
        (out, _), (expected, _) = (
            block_sparse_attention(q, k, v, **plan, formats=formats, scale=dim**-0.5, backend=backend)
            for backend in ("triton", "reference")
        )
        # Weights are rounded to FP8 by the kernel alone, and here nothing but noise is averaged.
        allowed = 0.01 if formats.values is None else 0.05
        assert (out.float() - expected.float()).norm() <= allowed * expected.float().norm(), formats


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "length", "query_blocks", "key_blocks"), SIZES)
def test_quantising_equals_the_reference(heads, length, query_blocks, key_blocks, dim, dtype):
    (_, k, v), plan = problem(heads, length, query_blocks, key_blocks, dim, dtype)
    _, start, live = chunk_layout(plan["key_offsets"], length)
    for formats in eight_bit_formats():
        made, expected = (
            quantise_chunks(
                *(k, v, plan["key_tokens"], plan["key_index"], start, live),
                shift=key_shift(k),
                steps=value_steps(v),
                formats=formats,
                backend=backend,
            )
            for backend in ("triton", "reference")
        )
        assert_close(made.key_steps, expected.key_steps)
        for codes, codes_expected in zip((made.keys, made.values), (expected.keys, expected.values), strict=True):
            assert (codes.float() != codes_expected.float()).float().mean() < 1e-3, "but for ties"


@pytest.mark.parametrize("with_tail", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_read_through_descriptors_give_what_pointers_read(monkeypatch, dim, dtype, with_tail):
    """Where the chip has them. Blocks of 63 and 64 tokens, two batch rows, NaN in memory that nobody has written."""
    from dit_accel.kernels.triton import block_sparse_attention as module

    described, real = [], module._descriptor
    monkeypatch.setattr(module, "_descriptor", lambda *args: described.append(args) or real(*args))
    length, blocks = 20_000, 315
    (q, k, v), plan = problem(3, length, 157, blocks, dim, dtype, batch=2)
    plan["key_offsets"] = (torch.arange(blocks + 1, device="cuda") * length // blocks).int().expand(6, -1).contiguous()
    tall = int((-(-plan["key_offsets"].diff(dim=1) // TALL)).sum(1).amax())
    if with_tail:
        plan["tail"] = pool(k, v, plan)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        for formats in (None, *eight_bit_formats()):
            described.clear()
            (out, lse), (expected, expected_lse) = (
                block_sparse_attention(
                    *(q, k, v),
                    **plan,
                    key_tall_chunks=chunks,
                    formats=formats,
                    scale=dim**-0.5,
                    return_lse=True,
                    backend="triton",
                )
                for chunks in (tall, None)
            )
            assert len(described) == (2 if reads_tall_chunks(registry.architecture(q.device)) else 0)
            # The same products, added in another order, rounded to 16 bits; FP8 weights have a maximum of their own.
            allowed = 0.03 if formats is not None and formats.values else 4e-3
            assert (out.float() - expected.float()).norm() <= allowed * expected.float().norm(), formats
            assert distance(lse, expected_lse) <= 3e-4
    finally:
        torch.use_deterministic_algorithms(False)


def test_attention_with_a_batch_contiguous_inputs_and_a_shared_keep():
    (q, k, v), plan = problem(3, 5_000, 20, 64, 128, torch.bfloat16, batch=2)
    plan["keep"] = plan["keep"][:1, :1].expand_as(plan["keep"])
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, lse = block_sparse_attention(q, k, v, **plan, scale=0.1, backend="triton")
    exact, _ = block_sparse_attention(q.float(), k.float(), v.float(), **plan, scale=0.1, backend="reference")
    assert lse is None and out.transpose(1, 2).is_contiguous()
    assert (out.float() - exact).norm() <= 5e-3 * exact.norm()


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "length", "query_blocks", "key_blocks"), SIZES)
def test_gathering_and_lists_equal_the_reference(heads, length, query_blocks, key_blocks, dim, dtype):
    (_, k, _), plan = problem(heads, length, query_blocks, key_blocks, dim, dtype)
    block, start, live = chunk_layout(plan["key_offsets"], length)
    tokens, index = plan["key_tokens"], plan["key_index"]
    gathered = [gather_chunks(k, tokens, index, start, live, backend=backend) for backend in ("triton", "reference")]
    assert torch.equal(*gathered)
    (entries, counts), (expected, expected_counts) = (
        chunk_lists(plan["keep"], block, live, index, backend=backend) for backend in ("triton", "reference")
    )
    assert torch.equal(counts, expected_counts)
    listed = torch.arange(entries.shape[-1], device="cuda") < counts[..., None]
    assert torch.equal(torch.where(listed, entries, 0), torch.where(listed, expected, 0))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "length", "query_blocks", "key_blocks"), SIZES)
def test_kmeans_equals_the_reference(heads, length, query_blocks, key_blocks, dim, dtype):
    (x, _, _), _ = problem(heads, length, query_blocks, key_blocks, dim, dtype)
    centroids = x[:, :, :key_blocks].contiguous()
    labels = kmeans.assign(x, centroids, backend="triton")
    expected = kmeans.assign(x, centroids, backend="reference")
    # Sums in another order may decide a near tie differently; then both centroids are equally near.
    assert (labels == expected).float().mean() > 0.999
    chosen, best = (
        torch.gather(centroids.float(), 2, choice.long()[..., None].expand_as(x)).sub_(x.float()).norm(dim=-1)
        for choice in (labels, expected)
    )
    assert distance(chosen, best) <= 1e-4

    order, offsets = group(labels, key_blocks, backend="triton")
    assert all(map(torch.equal, (order, offsets), group(labels, key_blocks, backend="reference")))
    problems = torch.arange(heads, device="cuda", dtype=torch.int32)[None]
    means, again, reference = (
        block_mean(x, order[0], offsets[0], problems, empty=centroids, backend=backend)
        for backend in ("triton", "triton", "reference")
    )
    assert_close(means, reference)
    assert torch.equal(means, again)


def stretched(heads, length, dim, dtype, *, batch=1):
    """Tokens around a mean, more stretched along some axes than along others, [B, N, H * D] in memory, and a weight."""
    random = torch.Generator("cuda").manual_seed(0)
    stretch, mean = (torch.randn(heads, dim, generator=random, device="cuda") for _ in range(2))
    x = torch.randn(batch, length, heads, dim, generator=random, device="cuda") * stretch.exp() + 3 * mean
    asked = torch.randn(batch, heads, 500, dim, generator=random, device="cuda")
    return x.to(dtype).transpose(1, 2), asked.mT @ asked / asked.square().sum((2, 3))[..., None, None]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "size"), [(1, 64), (333, 64), (9_999, 64), (20_000, 128)])
def test_trees_are_split_where_the_definition_has_it(length, size, dim, dtype):
    x, weight = stretched(2, length, dim, dtype, batch=2)
    order = tree_order(x, weight, size, backend="triton")
    every = torch.arange(length, device="cuda", dtype=torch.int32).expand(order.shape)
    assert torch.equal(order.sort(2).values, every)
    assert all(torch.equal(leaf, leaf.sort(2).values) for leaf in order.split(size, dim=2))
    # Where two channels vary alike, rounding decides with which of them the axis begins.
    assert len(wrong_splits(x, weight, order, size, 1e-3)) <= 0.01 * 4 * levels(length, size)[0]
    assert torch.equal(order, tree_order(x, weight, size, backend="triton"))


@pytest.mark.parametrize("dim", [64, 128])
def test_trees_at_wan_720p(dim):
    """The halves of the root as the reference has them, but for tokens at the border; leaves of like tokens."""
    x, weight = stretched(2, 75_600, dim, torch.bfloat16)
    for size in (64, 128):
        order, expected = (tree_order(x, weight, size, backend=backend).long() for backend in ("triton", "reference"))
        half = levels(75_600, size)[0] // 2 * size
        for one, other in zip(order.flatten(0, 1), expected.flatten(0, 1), strict=True):
            side = torch.zeros(2, 75_600, device="cuda")
            side[0, one[half:]] = side[1, other[half:]] = 1
            assert (side[0] != side[1]).float().mean() < 1e-3
        spread = [
            within(x, some, size) for some in (order, expected, torch.arange(75_600, device="cuda").expand_as(order))
        ]
        assert spread[0] == pytest.approx(spread[1], rel=0.01) and spread[0] < 0.6 * spread[2]


def within(x, order, size) -> float:
    """Mean variance of the channels within blocks of `size` tokens."""
    full = order[:, :, : order.shape[2] // size * size, None].expand(-1, -1, -1, x.shape[3])
    return x.float().gather(2, full).unflatten(2, (-1, size)).var(3).mean().item()


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("heads", "length", "query_blocks", "key_blocks"), SIZES)
def test_compensation_error_equals_the_reference(heads, length, query_blocks, key_blocks, dim):
    (q, k, v), plan = problem(heads, length, query_blocks, key_blocks, dim, torch.bfloat16)
    order = plan["key_tokens"], plan["key_offsets"], plan["key_index"]
    means = [block_mean(x, *order, backend="reference") for x in (k, v)]
    queries = q[:, :, :query_blocks].contiguous()
    found, expected = (
        log_compensation_error(queries, k, v, *order, *means, scale=dim**-0.5, backend=backend)
        for backend in ("triton", "reference")
    )
    # A block of one token has no error but rounding.
    several = (plan["key_offsets"].diff(dim=1)[plan["key_index"]] > 1)[:, :, None].expand(found.shape)
    assert distance(found[several], expected[several]) <= 2e-3


@pytest.mark.parametrize("blocks", [13, 1000, 16_384])
@pytest.mark.parametrize(
    ("top_p", "floor", "max_density"),
    [(0.9, 0.05, 1.0), (0.5, 0.0, 0.1), (1.0, 0.0, 0.5), ([0.3, 0.9, 0.5, 1.0], 0.0, 1.0)],
)
def test_selection_equals_the_reference(blocks, top_p, floor, max_density):
    if isinstance(top_p, list):
        top_p = torch.tensor(top_p, device="cuda")
    random = torch.Generator("cuda").manual_seed(0)
    sizes = torch.randint(0, 100, (1, 4, blocks), generator=random, device="cuda").int()
    logits = 2 * torch.randn(1, 4, 50, blocks, generator=random, device="cuda") + sizes[:, :, None].log()
    scores = logits.softmax(-1)
    (keep, capped), (expected, expected_capped) = (
        select_blocks(scores, sizes, top_p=top_p, floor=floor, max_density=max_density, backend=backend)
        for backend in ("triton", "reference")
    )
    # Sums in another order may move the threshold by the one block that reaches the mass.
    assert ((keep != expected).sum(-1) <= 1).all() and (keep == expected).float().mean() > 0.999
    assert torch.equal(capped, expected_capped)


def test_no_host_sync():
    (q, k, v), plan = problem(4, 9_999, 40, 130, 128, torch.bfloat16)
    order = plan["key_tokens"], plan["key_offsets"], plan["key_index"]
    sizes = plan["key_offsets"].diff(dim=-1)[None]
    scores = torch.rand(1, 4, 40, 130, device="cuda")
    weight = torch.eye(128, device="cuda").expand(1, 4, -1, -1)
    head_top_p = torch.rand(4, device="cuda")

    def everything():
        centroids = block_mean(k, *order, backend="triton")
        tail = Tail(centroids, block_mean(v, *order, backend="triton"), sizes.float().log())
        block_sparse_attention(q, k, v, **plan, tail=tail, scale=0.1, return_lse=True, backend="triton")
        for formats in eight_bit_formats():
            block_sparse_attention(q, k, v, **plan, tail=tail, formats=formats, scale=0.1, backend="triton")
        group(kmeans.assign(k, centroids, backend="triton"), 130, backend="triton")
        log_compensation_error(centroids[:, :, :40], k, v, *order, *tail[:2], scale=0.1, backend="triton")
        tree_order(k, weight, 64, backend="triton")
        for top_p in (0.9, head_top_p):
            select_blocks(scores, sizes, top_p=top_p, floor=0.1, max_density=0.5, backend="triton")

    everything()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_at_wan_720p_stays_within_twice_the_inputs():
    qkv, plan = problem(40, 75_600, 300, 1000, 128, torch.bfloat16)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    block_sparse_attention(*qkv, **plan, scale=0.1, return_lse=True, backend="triton")
    torch.cuda.synchronize()
    extra = torch.cuda.max_memory_allocated() - before
    assert extra <= 2 * sum(x.nbytes for x in qkv)


def test_trees_need_little_memory_at_wan_720p():
    x, weight = stretched(40, 75_600, 128, torch.bfloat16)
    tree_order(x, weight, 64, backend="triton")  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    tree_order(x, weight, 64, backend="triton")
    assert torch.cuda.max_memory_allocated() - before <= 0.1 * x.nbytes
