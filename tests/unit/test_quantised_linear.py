"""A linear layer with 4-bit weights: the same layer on every path, and each path beside its oracle."""

from dataclasses import replace
from itertools import pairwise

import comfy_kitchen
import pytest
import torch
import torch.nn.functional as F
from comfy_kitchen.tensor import QuantizedTensor, TensorCoreSVDQuantW4A4Layout

from dit_accel.accel.quant.compute import FP8, INT8, W4A4, W4A16
from dit_accel.accel.quant.linear import dense_weight, quantised_linear
from dit_accel.accel.quant.weight4 import E2M1, E2M1_VALUES, GELU_SHIFT, INT4, Weight4, dequantise, residual, shift_bias
from dit_accel.kernels.quantise import row_codes
from dit_accel.tests.support.closeness import assert_close
from dit_accel.tests.support.interpreter import fp8_as_hardware_rounds_it  # noqa: F401
from dit_accel.tests.support.svdquant import quantise, smoothing

PATHS = [W4A16, W4A4, INT8, FP8]
# Relative errors that a path may have on the layers here, where activations are normal but for a few channels.
LOSS = {W4A16: 0.004, W4A4: 0.12, INT8: 0.02, FP8: 0.04}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(rows, columns, *, rank=32, unsigned_from=None, dtype=torch.bfloat16, seed=0):
    """A plain weight [rows, columns], inputs [64, columns] with a few loud channels, and the weight in 4 bits."""
    random = generator(seed)
    plain = torch.randn(rows, columns, generator=random) / columns**0.5
    loud = torch.ones(columns)
    loud[torch.randperm(columns, generator=random)[:10]] = torch.linspace(10, 60, 10)
    x = torch.randn(64, columns, generator=random) * loud
    if unsigned_from is not None:
        x[:, unsigned_from:] = F.gelu(x[:, unsigned_from:], approximate="tanh")
    weight = quantise(plain, smoothing(plain, x.abs().amax(0)), rank=rank)
    return plain, x.to(dtype), replace(weight, unsigned_from=unsigned_from)


def error(out, exact):
    return ((out.double() - exact.double()).norm() / exact.double().norm()).item()


def exact_output(x, weight, bias=None):
    out = x.double() @ dequantise(weight).double().T
    return out if bias is None else out + bias.double()


SIGNS = [None, 0, 128]  # where unsigned input channels begin


@pytest.mark.parametrize("unsigned_from", SIGNS)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_path_is_the_same_layer(path, unsigned_from, dtype):
    plain, x, weight = layer(192, 256, unsigned_from=unsigned_from, dtype=dtype)
    bias = torch.randn(192, generator=generator(1))
    out = quantised_linear(x.view(4, 16, 256), weight, bias, path)
    assert out.shape == (4, 16, 192) and out.dtype == dtype
    assert error(out.flatten(0, 1), exact_output(x, weight, bias)) < LOSS[path]
    assert error(out.flatten(0, 1), x.double() @ plain.double().T + bias) < LOSS[path] + 0.08


def test_signed_and_unsigned_channels_keep_their_own_scales():
    _, x, weight = layer(64, 256, unsigned_from=128)
    weight = replace(weight, scale=weight.scale * torch.tensor([1.0, 2.0, 8.0, 16.0]).bfloat16()[:, None])
    assert error(quantised_linear(x, weight, None, W4A4), exact_output(x, weight)) < LOSS[W4A4]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [1, 17])
def test_few_tokens_odd_channels_no_bias_no_low_rank(path, rows):
    _, x, weight = layer(33, 128, rank=0)
    weight = replace(weight, smooth=None, proj_down=None, proj_up=None)
    out = quantised_linear(x[:rows], weight, None, path)
    assert out.shape == (rows, 33)
    # Nothing tames the loud channels.
    assert error(out, exact_output(x[:rows], weight)) < 3 * LOSS[path]


@pytest.mark.parametrize("path", [W4A16, INT8, FP8])
def test_e2m1_with_channel_scales(path):
    random = generator()
    codes = torch.randint(-128, 128, (48, 64), dtype=torch.int8, generator=random)
    scale = (torch.rand(8, 48, generator=random) + 0.5).to(torch.float8_e4m3fn)
    weight = Weight4(codes, scale, E2M1, channel_scale=torch.rand(48, generator=random))
    x = torch.randn(5, 128, generator=random).half()
    assert max(E2M1_VALUES) == 6
    assert error(quantised_linear(x, weight, None, path), exact_output(x, weight)) < LOSS[path]


def test_zero_points_dequantised():
    _, x, weight = layer(48, 128, rank=0)
    weight = replace(weight, zero=torch.randn(2, 48, generator=generator()).half())
    assert error(quantised_linear(x, weight, None, W4A16), exact_output(x, weight)) < LOSS[W4A16]


def test_more_rank_less_error():
    plain, _, _ = layer(128, 128)
    errors = [error(dense_weight(quantise(plain, rank=rank), (), torch.float32), plain) for rank in (0, 16, 64, 128)]
    assert all(later < earlier for earlier, later in pairwise(errors))
    assert errors[-1] < 2**-9


@pytest.mark.parametrize("unsigned_from", SIGNS)
def test_the_engines_formula_without_rounding_activations(unsigned_from):
    """Shifted input, shifted bias and the low rank of the raw input are the plain layer."""
    _, x, weight = layer(96, 256, unsigned_from=unsigned_from)
    bias = torch.randn(96, generator=generator(1)).double()
    shifted, engine_bias = x.double(), bias
    if unsigned_from is not None:
        shifted = shifted.clone()
        shifted[:, unsigned_from:] += GELU_SHIFT
        engine_bias = bias - shift_bias(weight).double()
    low_rank = x.double() @ weight.proj_down.double() @ weight.proj_up.double().T
    out = shifted / weight.smooth.double() @ residual(weight).double().T + low_rank + engine_bias
    assert error(out, exact_output(x, weight, bias)) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_smoothing_by_another_factor_is_the_same_layer(path):
    """A power of two moved from the scales to the smoothing changes no bit, so every part is in the basis it says."""
    _, x, weight = layer(64, 128)
    moved = replace(weight, smooth=weight.smooth * 4, scale=weight.scale * 4)
    assert torch.equal(*(quantised_linear(x, one, None, path) for one in (weight, moved)))


@pytest.mark.parametrize("path", PATHS)
def test_q_k_v_cut_from_one_weight(path):
    _, x, weight = layer(192, 256)
    bias = torch.randn(192, generator=generator(1))
    parts = []
    for rows in torch.arange(192).chunk(3):
        cut = slice(int(rows[0]), int(rows[-1]) + 1)
        part = replace(
            weight, codes=weight.codes[cut], scale=weight.scale[:, cut], proj_up=weight.proj_up[cut].contiguous()
        )
        parts.append(quantised_linear(x, part, bias[cut], path))
    assert_close(torch.cat(parts, dim=1), quantised_linear(x, weight, bias, path), units=1)


@pytest.mark.parametrize("unsigned_from", SIGNS)
@pytest.mark.parametrize("path", PATHS)
def test_lora_adds_its_product(path, unsigned_from):
    """At every path the LoRA's part is that of the raw input; of no strength it changes nothing."""
    dtype = torch.float16 if path in (W4A16, W4A4) else torch.bfloat16
    _, x, weight = layer(64, 256, unsigned_from=unsigned_from, dtype=dtype)
    random = generator(2)
    pairs = [(torch.randn(256, r, generator=random) / 16, torch.randn(64, r, generator=random)) for r in (4, 8)]
    base = quantised_linear(x, weight, None, path)
    silent = [(down, torch.zeros_like(up)) for down, up in pairs]
    assert torch.equal(quantised_linear(x, weight, None, path, silent), base)
    product = sum(x.double() @ down.double() @ up.double().T for down, up in pairs)
    whole = quantised_linear(x, weight, None, path, pairs)
    # W8A8 rounds the LoRA with the weight.
    bound = {W4A16: 2e-3, W4A4: 2e-3}.get(path, LOSS[path])
    assert error(whole, base.double() + product) < bound


@pytest.mark.parametrize(("rank", "loras", "expected"), [(32, [], 32), (20, [], 32), (32, [4], 48), (0, [7, 9], 32)])
def test_the_engine_gets_ranks_that_it_takes(rank, loras, expected, monkeypatch):
    _, x, weight = layer(64, 128, rank=rank)
    pairs = [(torch.ones(128, r), torch.ones(64, r)) for r in loras]
    seen, multiply = [], comfy_kitchen.scaled_mm_svdquant_w4a4

    def spy(codes, weight, steps, scale, low_rank, up, *rest, **options):
        seen.append((low_rank.shape[1], up.shape[1]))
        return multiply(codes, weight, steps, scale, low_rank, up, *rest, **options)

    monkeypatch.setattr(comfy_kitchen, "scaled_mm_svdquant_w4a4", spy)
    quantised_linear(x, weight, None, W4A4, pairs)
    assert seen == [(expected, expected)]


@pytest.mark.parametrize("unsigned", [False, True])
def test_w4a4_is_the_engines_own_layer(unsigned):
    _, x, weight = layer(1024, 1024, unsigned_from=0 if unsigned else None)
    bias = torch.randn(1024, generator=generator(1))
    params = TensorCoreSVDQuantW4A4Layout.Params(
        scale=weight.scale,
        orig_dtype=x.dtype,
        orig_shape=weight.shape,
        proj_down=weight.proj_down,
        proj_up=weight.proj_up,
        smooth_factor=weight.smooth,
        act_unsigned=unsigned,
    )
    theirs = QuantizedTensor(weight.codes, "TensorCoreSVDQuantW4A4Layout", params)
    engine_bias = bias - shift_bias(weight) if unsigned else bias
    expected = F.linear(x, theirs, engine_bias.to(x.dtype))
    assert torch.equal(quantised_linear(x, weight, bias, W4A4), expected)


@pytest.mark.parametrize("unsigned", [False, True])
def test_w4a4_beats_rounding_to_nearest(unsigned):
    """Loud input channels are what SVDQuant is for: the same activation grid, without smoothing and low rank."""
    plain, x, weight = layer(1024, 1024, unsigned_from=0 if unsigned else None)
    nearest = quantise(plain, rank=0, unsigned=unsigned)
    exact = x.double() @ plain.double().T
    errors = [error(quantised_linear(x, one, None, W4A4), exact) for one in (weight, nearest)]
    assert errors[0] <= 0.6 * errors[1]


def test_unsigned_inputs_use_all_16_codes():
    """A signed grid has half the steps for what is never negative."""
    _, x, weight = layer(256, 256, unsigned_from=0)
    exact = exact_output(x, weight)
    errors = [error(quantised_linear(x, replace(weight, unsigned_from=sign), None, W4A4), exact) for sign in (0, None)]
    assert errors[0] < 0.8 * errors[1]


def test_int8_is_the_engines_linear():
    _, x, weight = layer(96, 256, dtype=torch.float16)
    bias = torch.randn(96, generator=generator(1))
    dense = dequantise(weight) * weight.smooth.float()
    codes, steps = row_codes(dense.to(x.dtype), torch.int8)
    expected = comfy_kitchen.int8_linear(x / weight.smooth, codes, steps[:, None], bias, out_dtype=x.dtype)
    assert error(quantised_linear(x, weight, bias, INT8), expected) < 5e-3


@pytest.mark.parametrize("path", [INT8, FP8])
def test_8_bits_beside_fp64(path):
    """Rows rounded in fp64 give the same numbers but for what lies between two codes."""
    _, x, weight = layer(96, 256, dtype=torch.float16)
    exact = []
    for rows in (x.double() / weight.smooth.double(), dequantise(weight).double() * weight.smooth.double()):
        largest = rows.abs().amax(1, keepdim=True)
        step = largest / (127 if path == INT8 else 448)
        codes = (rows / step).round() if path == INT8 else (rows / step).float().to(torch.float8_e4m3fn).double()
        exact.append(codes * step)
    assert error(quantised_linear(x, weight, None, path), exact[0] @ exact[1].T) < 0.2 * LOSS[path]


def test_int8_loses_less_than_fp8():
    """Of a smoothed input: why compute.py prefers it."""
    _, x, weight = layer(512, 1024)
    errors = [error(quantised_linear(x, weight, None, path), exact_output(x, weight)) for path in (INT8, FP8)]
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize("path", PATHS)
def test_fp32_input(path):
    _, x, weight = layer(64, 128)
    out = quantised_linear(x.float(), weight, None, path)
    assert out.dtype == torch.float32
    assert error(out, exact_output(x, weight)) < LOSS[path]
    if path == W4A16:
        assert error(out, exact_output(x, weight)) < 1e-6


@pytest.mark.parametrize("path", PATHS)
def test_no_tokens(path):
    _, x, weight = layer(64, 128)
    assert quantised_linear(x[:0].view(2, 0, 128), weight, None, path).shape == (2, 0, 64)


@pytest.mark.parametrize("grid", [INT4, E2M1])
@pytest.mark.parametrize("unsigned_from", [0, 64, 100])
def test_shift_is_that_of_the_dense_weight(grid, unsigned_from):
    """Of the 4-bit part alone, in its every term, from a channel in the middle of a group too."""
    random = torch.Generator().manual_seed(1)
    weight = quantise(torch.randn(48, 192, generator=random), torch.rand(192, generator=random) + 0.5, grid=grid)
    zero = torch.randn(weight.scale.shape, generator=random)
    channels = torch.rand(48, generator=random) + 0.5
    weight = replace(weight, zero=zero, channel_scale=channels, unsigned_from=unsigned_from)
    dense = (residual(weight) / weight.smooth)[:, unsigned_from:].double()
    assert_close(weight.shift, GELU_SHIFT * dense.double().sum(dim=1), units=64)
