"""Linear attention beside its definition in fp64, over all pairs of tokens; and what must hold for any input."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_accel.kernels import registry, relu_linear_attention
from dit_accel.kernels.relu_linear_attention import EPSILON, PART, apply_sums, kv_sums
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.interpreter import bf16_as_hardware_computes_it  # noqa: F401
from dit_accel.tests.support.memory import LiveMemory

BACKENDS = ["triton", "reference"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SIZES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 2, 4, 8), (1, 1, 3, 11), (2, 2, 37, 31)]  # B, heads, h, W; one above PART

pytestmark = pytest.mark.usefixtures("bf16_as_hardware_computes_it")


def tokens_of(batch, heads, height, width, *, dim=32, dtype=torch.float32, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(batch, heads * 3 * dim, height, width, generator=random).to(dtype)


def attend(qkv, *, dim=32, backend="triton"):
    sums = kv_sums(qkv, head_dim=dim, backend=backend)
    return apply_sums(qkv, sums, head_dim=dim, backend=backend)


def all_pairs(qkv, dim):
    """fp64: every token's weight for every other, normalised by their sum."""
    batch, channels, height, width = qkv.shape
    q, k, v = qkv.double().reshape(batch, channels // (3 * dim), 3, dim, -1).unbind(2)
    weights = q.relu().mT @ k.relu()
    out = weights / (weights.sum(-1, keepdim=True) + EPSILON) @ v.mT
    return out.mT.reshape(batch, -1, height, width)


def exact_sums(qkv, dim):
    """fp64, with the row of ones written out."""
    _, k, v = qkv.double().reshape(qkv.shape[0], -1, 3, dim, qkv.shape[2] * qkv.shape[3]).unbind(2)
    return torch.cat([v, torch.ones_like(v[:, :, :1])], dim=2) @ k.relu().mT


def assert_as_exact_as_the_reference(found, reference, exact):
    error, allowed = ((x.double() - exact).norm() for x in (found, reference))
    assert error <= 2 * allowed + 2**-24 * exact.norm()


@pytest.mark.spread(2)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 32])
@pytest.mark.parametrize("size", SIZES)
def test_it_is_attention_over_all_pairs_without_softmax(size, dim, dtype):
    qkv = tokens_of(*size, dim=dim, dtype=dtype)
    exact = all_pairs(qkv, dim)
    found, reference = (attend(qkv, dim=dim, backend=backend) for backend in BACKENDS)
    assert found.dtype == dtype and found.shape == reference.shape == exact.shape
    assert (reference.double() - exact).norm() <= 2 * torch.finfo(dtype).eps * exact.norm()
    assert_as_exact_as_the_reference(found, reference, exact)
    sums = [kv_sums(qkv, head_dim=dim, backend=backend) for backend in BACKENDS]
    assert sums[0].dtype == torch.float32 and sums[0].shape == (*size[:2], dim + 1, dim)
    assert_as_exact_as_the_reference(*sums, exact_sums(qkv, dim))


def test_the_reference_takes_any_head_dimension():
    for dim in (1, 8, 24):
        qkv = tokens_of(2, 3, 5, 7, dim=dim)
        assert_close(attend(qkv, dim=dim, backend="reference"), all_pairs(qkv, dim))


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides_give_the_same_and_channels_last_stays(backend):
    """In a larger tensor of NaN: what lies beside the tokens is not read."""
    qkv = tokens_of(2, 2, 9, 7)
    expected = attend(qkv, backend=backend)

    def rows(layout):
        whole = torch.full((3, 200, 20, 7), torch.nan).contiguous(memory_format=layout)
        return whole[1:, 5:197, 4:13]

    def columns(layout):
        whole = torch.full((3, 200, 20, 12), torch.nan).contiguous(memory_format=layout)
        return whole[1:, 5:197, 4:13, 2:9]

    views = {
        "rows": rows(torch.contiguous_format),
        "rows, channels last": rows(torch.channels_last),
        "columns": columns(torch.contiguous_format),
        "columns, channels last": columns(torch.channels_last),
        "turned": torch.full((2, 192, 7, 9), torch.nan).transpose(2, 3),
    }
    for name, view in views.items():
        view.copy_(qkv)
        out = attend(view, backend=backend)
        assert_close(out, expected, what=name)
        layout = torch.channels_last if "last" in name else torch.contiguous_format
        assert out.is_contiguous(memory_format=layout), name
    repeated = qkv[:1].expand(3, -1, -1, -1)
    assert torch.equal(attend(repeated, backend=backend)[2], attend(qkv[:1], backend=backend)[0])


@pytest.mark.spread(1)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strips_add_up(backend, layout):
    qkv = tokens_of(2, 2, 41, 33).contiguous(memory_format=layout)
    strips = qkv.split([1, 17, 20, 3], dim=2)
    sums = sum(kv_sums(strip, head_dim=32, backend=backend) for strip in strips)
    whole = kv_sums(qkv, head_dim=32, backend=backend)
    assert_close(sums, whole)
    parts = [apply_sums(strip, whole, head_dim=32, backend=backend) for strip in strips]
    assert_close(torch.cat(parts, dim=2), attend(qkv, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_order_of_tokens_does_not_matter(backend):
    qkv = tokens_of(1, 2, 30, 40)
    order = torch.randperm(1200, generator=torch.Generator().manual_seed(1))
    shuffled = qkv.flatten(2)[..., order].unflatten(2, (40, 30))
    out = attend(qkv, backend=backend).flatten(2)[..., order]
    assert_close(attend(shuffled, backend=backend).flatten(2), out)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_stays_in_its_image_and_reaches_what_depends_on_it(backend):
    qkv = tokens_of(3, 2, 6, 8)
    expected = attend(qkv, backend=backend).isnan()
    assert not expected.any()
    qkv[1, 40, 2, 3] = torch.nan  # a key of head 0: all of that head
    expected[1, :32] = True
    qkv[2, 70, 0, 0] = torch.nan  # a value of head 0: one channel
    expected[2, 6] = True
    qkv[2, 100, 5, 7] = torch.nan  # a query of head 1: one token
    expected[2, 32:, 5, 7] = True
    assert torch.equal(attend(qkv, backend=backend).isnan(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_that_see_nothing_get_zero(backend):
    qkv = tokens_of(1, 2, 4, 5)
    qkv[:, 32:64] = -qkv[:, 32:64].abs()
    out = attend(qkv, backend=backend)
    assert (out[:, :32] == 0).all() and (out[:, 32:] != 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(0, 2, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
def test_nothing_in_nothing_out(backend, size):
    qkv = tokens_of(*size)
    sums = kv_sums(qkv, head_dim=32, backend=backend)
    assert torch.equal(sums, torch.zeros(size[0], 2, 33, 32))
    assert apply_sums(qkv, sums, head_dim=32, backend=backend).shape == (size[0], 64, *size[2:])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_many_large_tokens_of_one_sign_keep_their_sum(dtype):
    """Products far beyond fp16, sums that grow with every token: where a low precision would show."""
    qkv = (tokens_of(1, 1, 400, 100).abs() * 3e3).to(dtype)
    exact = exact_sums(qkv, 32)
    sums = [kv_sums(qkv, head_dim=32, backend=backend) for backend in BACKENDS]
    assert_as_exact_as_the_reference(*sums, exact)
    assert exact[:, :, :32].amin() > 1e11 and qkv[0, 0].numel() > 32 * PART


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        pytest.param((1, 48, 1, 40), (1, 2**28, 1, 1), id="channels"),
        pytest.param((1, 48, 20, 2), (1, 2, 2**27, 1), id="rows"),
        pytest.param((1, 48, 1, 40), (1, 1, 1, 2**26), id="tokens"),
        pytest.param((20, 48, 1, 2), (2**27, 2, 2, 1), id="images"),
    ],
)
def test_offsets_beyond_32_bits(tmp_path, shape, strides):
    """In a file full of holes, which takes no room."""
    size = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    file = np.memmap(tmp_path / "sparse", dtype=np.float16, mode="w+", shape=size)
    qkv = torch.from_numpy(file).as_strided(shape, strides)
    qkv.copy_(tokens_of(shape[0], 1, *shape[2:], dim=16, dtype=torch.float16))
    assert size > 2**31
    assert torch.equal(attend(qkv, dim=16), attend(qkv.contiguous(), dim=16))


def test_equal_inputs_give_equal_results():
    qkv = tokens_of(1, 2, 50, 50, dtype=torch.float16)
    assert torch.equal(attend(qkv), attend(qkv.clone()))


def test_custom_ops_keep_their_promises():
    ops = torch.ops.dit_accel
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in DTYPES:
            qkv = tokens_of(2, 3, 5, 7, dtype=dtype).contiguous(memory_format=layout)
            calls = (ops.kv_sums, (qkv, 32)), (ops.apply_sums, (qkv, torch.randn(2, 3, 33, 32), 32))
            for op, arguments in calls:
                torch.library.opcheck(op.default, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_launching_copies_nothing_and_reads_nothing_back(monkeypatch, layout):
    """The stage of 4096 x 4096 pixels at an eighth, in two strips; reading a fake tensor would raise."""
    from dit_accel.kernels import relu_linear_attention as module
    from dit_accel.kernels.triton import relu_linear_attention as launcher

    grids = []

    class NoKernel:
        def __getitem__(self, grid):
            grids.append(grid)
            return lambda *args, **kwargs: None

    monkeypatch.setattr(launcher, "_kv_sums", NoKernel())
    monkeypatch.setattr(launcher, "_apply_sums", NoKernel())
    with FakeTensorMode():
        qkv = torch.empty(1, 3072, 512, 512, dtype=torch.bfloat16).contiguous(memory_format=layout)
        for strip in qkv.split(256, dim=2):
            with LiveMemory(qkv, result=(1, 1024, 256, 512)) as memory:
                sums = module._sums_triton(strip, 32)
                module._apply_triton(strip, sums, 32)
            assert memory.peak <= 0.03 * strip.nbytes
    assert grids == 4 * [(128 * 32,)]


def test_what_the_registry_says(monkeypatch):
    def reason(**call):
        call = {"device": "cpu", "dtype": torch.float16, "head_dim": 32} | call
        return registry.choose(relu_linear_attention.__name__.rsplit(".", 1)[1], **call)

    assert reason() == reason(dtype=torch.float32) == ("triton", "")
    assert reason(head_dim=8) == (None, "head dimension 8 is not supported")
    assert reason(dtype=torch.bfloat16) == (None, "dtype bfloat16 is not supported")  # by the interpreter
