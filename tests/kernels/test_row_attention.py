"""Attention of a few rows: both backends beside dense attention in fp64."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.kernels import registry
from dit_accel.kernels.row_attention import row_attention
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.interpreter import bf16_as_hardware_computes_it  # noqa: F401
from dit_accel.tests.support.memory import LiveMemory

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [  # B, heads, rows, keys, D; a program of the kernel takes 1024 keys
    (1, 1, 1, 1, 64),
    (2, 3, 16, 333, 64),
    (1, 2, 17, 1025, 128),
    (2, 1, 48, 2100, 64),
    (1, 1, 64, 1024, 128),
    (1, 2, 5, 63, 128),
]

pytestmark = pytest.mark.usefixtures("bf16_as_hardware_computes_it")
backends = pytest.mark.parametrize("backend", ["triton", "torch", "reference"])


def problem(batch, heads, rows, length, dim, *, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, rows, dim), *2 * [(batch, heads, length, dim)]
    return [torch.randn(shape, generator=random).to(dtype) for shape in shapes]


def dense(queries, k, v, scale):
    """Attention and log-sum-exp in fp64."""
    logits = queries.double() @ k.double().mT * scale
    return logits.softmax(-1) @ v.double(), logits.logsumexp(-1)


def check(queries, k, v, backend, *, scale=None):
    scale = k.shape[3] ** -0.5 if scale is None else scale
    out, lse = row_attention(queries, k, v, scale=scale, backend=backend)
    exact, exact_lse = dense(queries, k, v, scale)
    assert out.dtype == lse.dtype == torch.float32 and out.shape == queries.shape and lse.shape == queries.shape[:3]
    # The kernel rounds attention weights to the dtype of the values, no more.
    allowed = torch.finfo(v.dtype).eps if backend == "triton" and v.dtype != torch.float32 else 1e-6
    assert (out - exact).norm() <= allowed * exact.norm()
    assert_close(lse, exact_lse, units=16)
    return out


@backends
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_it_is_dense_attention(size, dtype, backend):
    check(*problem(*size, dtype=dtype), backend)


def test_the_reference_in_many_steps_and_any_head_dimension(monkeypatch):
    from dit_accel.kernels import row_attention as module

    for elements in (1, 1 << 12, 1 << 14):
        monkeypatch.setattr(module, "REFERENCE_ELEMENTS", elements)
        check(*problem(2, 3, 7, 100, 24), "reference")


@backends
def test_keys_and_values_from_one_packed_tensor(backend):
    """[B, N, 3, H, D] seen as three [B, H, N, D], in a wider tensor of NaN; keys of one batch row shared by all."""
    contents = problem(2, 3, 1100, 1100, 64)
    whole = torch.full((2, 1105, 3, 3, 80), torch.nan)
    views = [x.transpose(1, 2) for x in whole[:, 2:1102, :, :, 8:72].unbind(2)]
    for view, content in zip(views, contents, strict=True):
        view.copy_(content)
    rows, k, v = views
    out = check(rows[:, :, 5:800:41], k, v, backend)
    straight = row_attention(*(x.contiguous() for x in (rows[:, :, 5:800:41], k, v)), scale=1 / 8, backend=backend)[0]
    assert torch.equal(out, straight) or backend == "reference"
    check(rows[:, :, :20], k[:1].expand(2, -1, -1, -1), v.contiguous(), backend)


@backends
@pytest.mark.parametrize("place", [0, 700, 1024])
def test_one_key_that_outweighs_all_others(backend, place):
    """Logits of 80,000 beside ordinary ones, also alone in the last program's part."""
    queries, k, v = problem(1, 2, 20, 1025, 64)
    queries[..., 0], k[..., 0] = 1e3, 0.0
    k[:, :, place, 0] = 640.0
    out = check(queries, k, v, backend)
    assert_close(out, v[:, :, place, None].expand_as(out), units=4)


@backends
def test_large_values(backend):
    queries, k, v = problem(1, 2, 20, 1500, 64)
    queries, k, v = queries * 100, k * 100, v * 1e30
    out, lse = row_attention(queries, k, v, scale=0.125, backend=backend)
    exact, exact_lse = dense(queries, k, v, 0.125)
    assert_close(lse, exact_lse)
    assert (out - exact).norm() <= 2e-2 * exact.norm()


@backends
def test_equal_keys_give_the_mean_of_the_values(backend):
    queries, k, v = problem(1, 2, 16, 2049, 64)
    out = check(queries, k[:, :, :1].expand_as(k), v, backend)
    assert_close(out, v.double().mean(2, keepdim=True).expand_as(out), units=64)


@backends
@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")  # numpy's, in the interpreter
def test_nan_stays_with_its_row_and_its_head(backend):
    queries, k, v = problem(2, 2, 18, 1030, 64)
    queries[0, 0, 17, 3] = torch.nan
    k[1, 0, 1029, 5] = torch.nan
    v[1, 1, 2, 7] = torch.nan
    expected = torch.zeros(2, 2, 18, 64, dtype=torch.bool)
    expected[0, 0, 17] = expected[1, 0] = expected[1, 1, :, 7] = True
    out, lse = row_attention(queries, k, v, scale=0.125, backend=backend)
    assert torch.equal(out.isnan(), expected) and torch.equal(lse.isnan(), expected[..., 0])


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((1, 1, 40, 64), (1, 1, 2**26, 1), id="tokens"),
        pytest.param((1, 3, 40, 64), (1, 2**30, 64, 1), id="heads"),
        pytest.param((3, 2, 40, 64), (2**30, 64, 128, 1), id="batch"),
    ],
)
def test_offsets_beyond_32_bits(tmp_path, shape, strides):
    """In files full of holes, which take no room."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    inputs = problem(*shape[:2], 16, *shape[2:], dtype=torch.float16)
    for i in (1, 2):
        file = np.memmap(tmp_path / f"sparse {i}", dtype=np.float16, mode="w+", shape=size)
        inputs[i] = torch.from_numpy(file).as_strided(shape, strides).copy_(inputs[i])
    assert size > 2**31
    check(*inputs, "triton")


@backends
def test_equal_inputs_give_equal_results(backend):
    inputs = problem(1, 2, 16, 1500, 64, dtype=torch.float16)
    first, second = (row_attention(*inputs, scale=0.1, backend=backend) for _ in range(2))
    assert all(map(torch.equal, first, second))


# Wan 2.1 14B, 720p, 81 frames.
HEADS, TOKENS, DIM = 40, 75_600, 128


def test_launching_copies_nothing_and_reads_nothing_back(monkeypatch):
    """Reading a fake tensor would raise."""
    from dit_accel.kernels.triton import row_attention as launcher

    grids = []

    class NoKernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(launcher, "_attend_part", NoKernel())
    with FakeTensorMode():
        k, v = (torch.empty(1, TOKENS, HEADS, DIM, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
        with LiveMemory(k, v, result=(1, HEADS, 16, DIM)) as memory:
            out, lse = launcher.launch(k[:, :, :16], k, v, 0.1)
    assert out.shape == (1, HEADS, 16, DIM) and lse.shape == (1, HEADS, 16)
    assert grids == [(74, HEADS)]
    assert memory.peak <= 0.02 * (k.nbytes + v.nbytes)


@pytest.mark.parametrize(("heads", "tokens"), [(HEADS, TOKENS), (3, 300_000)])
def test_memory_of_the_reference(heads, tokens):
    with FakeTensorMode():
        k, v = (torch.empty(1, tokens, heads, DIM, dtype=torch.bfloat16).transpose(1, 2) for _ in range(2))
        with LiveMemory(k, v, result=(1, heads, 64, DIM)) as memory:
            row_attention(k[:, :, :64], k, v, scale=0.1, backend="reference")
    assert memory.peak <= 64 * 2**20


def test_what_the_registry_says():
    def reason(**call):
        return registry.choose("row_attention", **{"device": "cpu", "dtype": torch.float16, "head_dim": 128} | call)

    assert reason() == reason(head_dim=64) == ("triton", "")
    assert reason(head_dim=80) == ("torch", "")
