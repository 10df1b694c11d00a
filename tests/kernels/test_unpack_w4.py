"""4-bit weights as a dense matrix: the definition, element by element, and the kernel beside the reference."""

import pytest
import torch

from dit_accel.kernels.unpack_w4 import E2M1, INT4, unpack_w4
from dit_accel.tests.support.closeness import assert_close

FP8 = torch.float8_e4m3fn
BACKENDS = ["triton", "reference"]


def make(rows, columns, group, scale_dtype, *, parts=(), seed=0):
    """Arguments of unpack_w4 with every code, scales over four decades, and of the optional tensors `parts`."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, columns // 2), dtype=torch.int8, generator=random)
    groups = columns // group
    scale = 10 ** (4 * torch.rand(groups, rows, generator=random) - 3)
    optional = {
        "zero": (torch.randn(groups, rows, generator=random)).half(),
        "channel_scale": torch.rand(rows, generator=random) + 0.5,
        "smooth": (10 ** (2 * torch.rand(columns, generator=random) - 1)).bfloat16(),
    }
    return {"codes": codes, "scale": scale.to(scale_dtype)} | {name: optional[name] for name in parts}


def element(code, grid):
    """The value of one code, from the definition of its grid."""
    if grid == INT4:
        return code - 16 if code > 7 else code
    exponent, mantissa = (code & 7) >> 1, code & 1
    magnitude = mantissa / 2 if exponent == 0 else 2.0 ** (exponent - 1) * (1 + mantissa / 2)
    return -magnitude if code > 7 else magnitude


def by_definition(weight, grid):
    """fp64 [N, K], one element after another."""
    codes, scale = weight["codes"], weight["scale"].double()
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    group = columns // scale.shape[0]
    dense = torch.empty(rows, columns, dtype=torch.float64)
    for n in range(rows):
        for k in range(columns):
            code = int(codes[n, k // 2]) >> 4 * (k % 2) & 15
            value = element(code, grid) * scale[k // group, n]
            if "zero" in weight:
                value = value + weight["zero"][k // group, n].double()
            if "channel_scale" in weight:
                value = value * weight["channel_scale"].expand(rows)[n].double()
            if "smooth" in weight:
                value = value / weight["smooth"][k].double()
            dense[n, k] = value
    return dense


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", [INT4, E2M1])
@pytest.mark.parametrize("group", [16, 64])
@pytest.mark.parametrize("scale_dtype", [torch.bfloat16, torch.float16, torch.float32, FP8])
@pytest.mark.parametrize("parts", [(), ("zero",), ("channel_scale",), ("smooth",), ("zero", "channel_scale", "smooth")])
def test_every_element_is_what_the_definition_says(backend, grid, group, scale_dtype, parts):
    weight = make(3, 128, group, scale_dtype, parts=parts)
    dense = unpack_w4(**weight, grid=grid, dtype=torch.float32, backend=backend)
    assert_close(dense, by_definition(weight, grid), units=8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("grid", [INT4, E2M1])
def test_all_codes_in_both_nibbles(backend, grid):
    """Exactly, at every dtype: the values of the grids need few bits."""
    low, high = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    codes = (low | high << 4).to(torch.uint8).view(torch.int8).reshape(8, 32)
    expected = torch.stack([low, high], dim=-1).reshape(8, 64)
    expected = torch.tensor([[float(element(code, grid)) for code in row] for row in expected.tolist()])
    for dtype in (torch.float16, torch.float32):
        dense = unpack_w4(codes, torch.ones(1, 8), grid=grid, dtype=dtype, backend=backend)
        assert torch.equal(dense.float(), expected)


@pytest.mark.parametrize("rows", [1, 15, 17, 33])
@pytest.mark.parametrize(("columns", "group"), [(64, 64), (64, 16), (320, 64), (1088, 64), (272, 16), (5120, 64)])
def test_hostile_shapes(rows, columns, group):
    weight = make(rows, columns, group, torch.bfloat16, parts=("channel_scale", "smooth"))
    results = [unpack_w4(**weight, grid=INT4, dtype=torch.float16, backend=backend) for backend in BACKENDS]
    assert results[0].shape == (rows, columns)
    assert torch.equal(*results)


def test_rows_of_a_larger_weight_without_a_copy():
    """As q, k and v are cut from one fused weight: scales and zero points with the strides of the whole."""
    whole = make(48, 256, 64, torch.bfloat16, parts=("zero",))
    expected = unpack_w4(**whole, grid=INT4, dtype=torch.float16, backend="reference")
    part = {"codes": whole["codes"][16:32], "scale": whole["scale"][:, 16:32], "zero": whole["zero"][:, 16:32]}
    transposed = {**part, "scale": part["scale"].T.contiguous().T}
    for weight in (part, transposed):
        dense = unpack_w4(**weight, grid=INT4, dtype=torch.float16, backend="triton")
        assert torch.equal(dense, expected[16:32])


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_scale_for_all_channels(backend):
    weight = make(5, 64, 16, FP8)
    ask = {"grid": E2M1, "dtype": torch.float32, "backend": backend}
    dense = unpack_w4(**weight, channel_scale=torch.tensor([0.25]), **ask)
    assert torch.equal(dense, unpack_w4(**weight, **ask) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [1e-30, 1e-4, 1e30])
def test_huge_and_small_scales(backend, value):
    """Products are fp32 until the end: a channel scale may bring back what 16 bits cannot hold."""
    weight = {"codes": make(3, 64, 64, torch.float32)["codes"], "scale": torch.full((1, 3), value)}
    ask = {"grid": INT4, "dtype": torch.float16, "backend": backend}
    plain = unpack_w4(weight["codes"], torch.ones(1, 3), **ask)
    assert torch.equal(unpack_w4(**weight, channel_scale=torch.full((3,), 1 / value), **ask), plain)


def test_every_fp8_scale():
    """All 256 bytes of the scale, NaN among them."""
    scale = torch.arange(256).to(torch.uint8).view(FP8).reshape(1, 256)
    codes = torch.full((256, 32), 0x11, dtype=torch.int8)
    dense = unpack_w4(codes, scale, grid=INT4, dtype=torch.float32, backend="triton")
    expected = scale.float().T.expand(256, 64)
    torch.testing.assert_close(dense, expected, rtol=0, atol=0, equal_nan=True)


def test_groups_that_the_kernel_does_not_take():
    with pytest.raises(ValueError, match="found 96 in 2 groups"):
        unpack_w4(
            torch.zeros(1, 48, dtype=torch.int8), torch.ones(2, 1), grid=INT4, dtype=torch.float16, backend="triton"
        )
