"""Attention of a few rows on a GPU: the reference's answers at real sizes, no host sync, bounded memory."""

import pytest
import torch

from dit_accel.kernels.row_attention import row_attention
from dit_accel.tests.support.closeness import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def problem(heads, length, rows, dim, dtype, *, batch=1):
    """Queries at random places, and keys and values as ComfyUI hands them over ([B, N, H * D] in memory)."""
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = (
        torch.randn(batch, length, heads, dim, generator=random, device="cuda", dtype=dtype).transpose(1, 2)
        for _ in range(3)
    )
    places = torch.randint(length, (rows,), generator=random, device="cuda")
    return q.index_select(2, places), k, v


@pytest.mark.parametrize("rows", [1, 16, 33, 64])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "heads", "length"), [(1, 1, 1), (2, 3, 333), (1, 4, 9_999), (1, 12, 75_600)])
def test_it_is_dense_attention(batch, heads, length, dtype, dim, rows):
    queries, k, v = problem(heads, length, rows, dim, dtype, batch=batch)
    out, lse = row_attention(queries, k, v, scale=dim**-0.5, backend="triton")
    logits = queries.double() @ k.double().mT * dim**-0.5
    exact, exact_lse = logits.softmax(-1) @ v.double(), logits.logsumexp(-1)
    assert (out - exact).norm() <= torch.finfo(dtype).eps * exact.norm()
    assert_close(lse, exact_lse, units=64)
    reference, reference_lse = row_attention(queries, k, v, scale=dim**-0.5, backend="reference")
    assert (out - reference).norm() <= torch.finfo(dtype).eps * exact.norm()
    assert_close(lse, reference_lse, units=64)


@pytest.mark.parametrize("rows", [16, 64])
def test_no_host_sync_and_little_memory_at_wan_720p(rows):
    queries, k, v = problem(40, 75_600, rows, 128, torch.bfloat16)
    first = row_attention(queries, k, v, scale=0.1, backend="triton")  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = row_attention(queries, k, v, scale=0.1, backend="triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before <= 0.02 * rows / 16 * (k.nbytes + v.nbytes)
    assert all(map(torch.equal, first, second))


def test_offsets_beyond_32_bits():
    """Each head is as far from the next as 2^31 numbers."""
    queries, k, v = problem(2, 2_000, 16, 64, torch.float16)
    store = torch.empty(2**31 + 2_000 * 64, dtype=torch.float16, device="cuda")
    far = store.as_strided(k.shape, (0, 2**31, 64, 1)).copy_(k)
    expected = row_attention(queries, k, v, scale=0.1, backend="triton")
    assert all(map(torch.equal, row_attention(queries, far, v, scale=0.1, backend="triton"), expected))
