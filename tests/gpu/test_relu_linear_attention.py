"""Linear attention on a GPU: as exact as plain fp32, in every layout; no host sync, bounded memory."""

import pytest
import torch

from dit_accel.kernels.relu_linear_attention import EPSILON, apply_sums, kv_sums
from dit_accel.tests.support.closeness import assert_close

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

DIM = 32
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
SIZES = [(2, 3, 5, 7), (1, 2, 33, 31), (1, 32, 128, 128), (1, 4, 512, 512)]  # B, heads, h, W


def tokens_of(batch, heads, height, width, dtype, *, dim=DIM, one_sign=False):
    random = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(batch, heads * 3 * dim, height, width, generator=random, device="cuda")
    return (qkv.abs() if one_sign else qkv).to(dtype)


def both(qkv, backend, dim=DIM):
    sums = kv_sums(qkv, head_dim=dim, backend=backend)
    return sums, apply_sums(qkv, sums, head_dim=dim, backend=backend)


def exact(qkv, dim):
    """fp64."""
    q, k, v = (x.flatten(3) for x in qkv.double().unflatten(1, (-1, 3, dim)).unbind(2))
    sums = torch.cat([v, torch.ones_like(v[:, :, :1])], dim=2) @ k.relu().mT
    out = sums[:, :, :-1] @ q.relu() / (sums[:, :, -1:] @ q.relu() + EPSILON)
    return sums, out.unflatten(3, qkv.shape[2:]).flatten(1, 2)


@pytest.mark.parametrize("one_sign", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_as_exact_as_plain_fp32(size, dim, dtype, one_sign):
    qkv = tokens_of(*size, dtype, dim=dim, one_sign=one_sign)
    truth = exact(qkv, dim)
    for found, reference, right in zip(both(qkv, "triton", dim), both(qkv, "reference", dim), truth, strict=True):
        error, allowed = ((x.double() - right).norm() for x in (found, reference))
        assert error <= 2 * allowed + 2**-24 * right.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_layouts_agree_and_runs_repeat(dtype):
    qkv = tokens_of(2, 4, 96, 80, dtype)
    expected = both(qkv, "triton")
    assert all(map(torch.equal, expected, both(qkv.clone(), "triton")))
    wide = torch.full((2, 384, 100, 90), torch.nan, dtype=dtype, device="cuda")
    for layout in (torch.contiguous_format, torch.channels_last):
        for columns in (slice(0, 90), slice(5, 85)):
            whole = wide[:, :, :, : 80 if columns.start == 0 else 90].contiguous(memory_format=layout)
            view = whole[:, :, 2:98, columns]
            view.copy_(qkv)
            for found, right in zip(both(view, "triton"), expected, strict=True):
                assert_close(found, right, units=2 if found.dtype != torch.float32 else 16)
    strips = sum(kv_sums(strip, head_dim=DIM, backend="triton") for strip in qkv.split(17, dim=2))
    assert_close(strips, expected[0])


def test_nan_stays_in_its_image():
    qkv = tokens_of(2, 2, 40, 40, torch.bfloat16)
    qkv[0, 40, 3, 3] = torch.nan  # a key of head 0
    found = both(qkv, "triton")[1].isnan()
    assert found[0, :DIM].all() and not found[0, DIM:].any() and not found[1].any()


def test_offsets_beyond_32_bits():
    qkv = torch.empty(1, 3 * DIM, 2, 12_000_000, dtype=torch.float16, device="cuda")
    qkv[..., -4096:] = tokens_of(1, 1, 2, 4096, torch.float16)
    assert qkv.numel() > 2**31
    view = qkv[..., -4096:]
    for found, right in zip(both(view, "triton"), both(view.contiguous(), "triton"), strict=True):
        assert torch.equal(found, right)


def test_no_host_sync_and_little_memory():
    qkv = tokens_of(1, 32, 512, 512, torch.bfloat16)
    both(qkv, "triton")  # compiles
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        _, out = both(qkv, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() - before <= out.nbytes + 0.03 * qkv.nbytes
