"""Bit layouts: the closed form of every element, the way back, and files of the official exporter."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dit_accel.accel.quant import packing
from dit_accel.accel.quant.formats.nunchaku_layers import PARTS, read_awq, read_svdquant
from dit_accel.accel.quant.weight4 import dequantise, residual, unpack_nibbles
from dit_accel.tests.support.closeness import assert_close

GOLDEN = Path(__file__).parents[1] / "golden"
tiles = st.integers(1, 3)
# Made once: each test reads what it needs of it.
NOISE = torch.randint(-128, 128, (384 * 384,), dtype=torch.int8, generator=torch.Generator().manual_seed(0))


def some(*shape: int, dtype=torch.int8) -> torch.Tensor:
    size = torch.Size(shape).numel()
    if dtype == torch.int8:
        return NOISE[:size].view(shape)
    if dtype == torch.float8_e4m3fn:
        return NOISE[:size].view(shape).view(dtype)
    # Distinct values, to tell every element from every other.
    return torch.arange(size, dtype=torch.float64).view(shape).to(dtype)


def elements(*shape: int):
    """A hundred places in a tensor."""
    generator = torch.Generator().manual_seed(1)
    return zip(*(torch.randint(size, (100,), generator=generator).tolist() for size in shape), strict=True)


@settings(max_examples=5, deadline=None)
@given(tiles, tiles)
def test_nunchaku_codes(row_tiles, column_tiles):
    N, K = 128 * row_tiles, 64 * column_tiles
    packed = some(N, K // 2)
    codes = packing.unpack_codes(packed)
    nibbles, words = unpack_nibbles(codes), packed.flatten().view(torch.int32)
    for n, k in elements(N, K):
        nt, np, nh, nl = n // 128, n % 128 // 16, n % 16 // 8, n % 8
        kt, kh, kl, r = k // 64, k % 64 // 32, k % 32 // 8, k % 8
        word = words[(((((nt * (K // 64) + kt) * 8 + np) * 8 + nl) * 4 + kl) * 2 + nh) * 2 + kh]
        assert nibbles[n, k] == word >> 4 * r & 15
    assert torch.equal(packing.pack_codes(codes), packed)


@settings(max_examples=5, deadline=None)
@given(tiles, st.integers(1, 5))
def test_nunchaku_scales(row_tiles, groups):
    N = 128 * row_tiles
    packed = some(groups, N, dtype=torch.float32)
    scales = packing.unpack_scales(packed)
    for g, n in elements(groups, N):
        nt, a, b, lane, p = n // 128, n % 128 // 16, n % 16 // 8, n % 8 // 2, n % 2
        assert scales[g, n] == packed.flatten()[(nt * groups + g) * 128 + ((a * 4 + lane) * 2 + b) * 2 + p]
    assert torch.equal(packing.pack_scales(scales), packed)
    assert torch.equal(packing.unpack_vector(packed[0]), packing.unpack_scales(packed[:1])[0])
    assert torch.equal(packing.pack_vector(packing.unpack_vector(packed[0])), packed[0])


@settings(max_examples=5, deadline=None)
@given(tiles, tiles)
def test_nunchaku_micro_scales(row_tiles, column_tiles):
    N, G = 128 * row_tiles, 4 * column_tiles
    packed = some(G, N, dtype=torch.float8_e4m3fn)
    scales = packing.unpack_micro_scales(packed)
    assert scales.dtype == packed.dtype and scales.shape == packed.shape
    for g, n in elements(G, N):
        nt, s4, l4, l8 = n // 128, n % 128 // 32, n % 32 // 8, n % 8
        place = (nt * (G // 4) + g // 4) * 512 + ((l8 * 4 + l4) * 4 + s4) * 4 + g % 4
        assert scales.view(torch.int8)[g, n] == packed.view(torch.int8).flatten()[place]
    assert torch.equal(packing.pack_micro_scales(scales).view(torch.int8), packed.view(torch.int8))


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 8), st.integers(1, 4))
def test_nunchaku_low_rank(long, short):
    size, rank = 16 * long, 16 * short
    packed = some(size, rank, dtype=torch.float32)
    down, up = packing.unpack_down(packed), packing.unpack_up(packed)

    def place(i, r, a, c):
        inside = ((((a & 7) * 4 + (c >> 1 & 3)) * 2 + (a >> 3)) * 2 + (c >> 3)) * 2 + (c & 1)
        return ((i // 16) * (rank // 16) + r // 16) * 256 + inside

    for i, r in elements(size, rank):
        assert down[i, r] == packed.flatten()[place(i, r, r % 16, i % 16)]
        assert up[i, r] == packed.flatten()[place(i, r, i % 16, r % 16)]
    assert torch.equal(packing.pack_down(down), packed)
    assert torch.equal(packing.pack_up(up), packed)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 40), tiles)
def test_awq_codes(quarter, column_tiles):
    N, K = 4 * quarter, 64 * column_tiles
    packed = some(quarter, 2 * K).view(torch.int32)
    codes = packing.unpack_awq(packed)
    nibbles, words = unpack_nibbles(codes), packed.view(torch.int16).view(quarter, K // 64, 4, 2, 8)
    for n, k in elements(N, K):
        half, j, t = k % 64 // 32, k % 32 // 8, k % 8
        assert nibbles[n, k] == words[n // 4, k // 64, n % 4, half, t] >> 4 * j & 15
    assert torch.equal(packing.pack_awq(codes), packed)


@pytest.mark.parametrize("parts", [1, 3, 6])
def test_interleaved_outputs(parts):
    plain = torch.arange(2 * parts * 4).view(parts * 4, 2)
    mixed = packing.interleave(plain, parts, 0)
    for j in range(4):
        for chunk in range(parts):
            assert torch.equal(mixed[j * parts + chunk], plain[chunk * 4 + j])
    assert torch.equal(packing.deinterleave(mixed, parts, 0), plain)
    assert torch.equal(packing.deinterleave(mixed.T, parts, 1), plain.T)


@settings(max_examples=5, deadline=None)
@given(tiles, tiles)
def test_kitchen_tiles(row_tiles, column_tiles):
    N, K, R = 128 * row_tiles, 64 * column_tiles, 16
    codes = some(N, K // 2)
    scales, up = some(K // 64, N, dtype=torch.float32), some(N, R, dtype=torch.float32)
    packed = packing.pack_tile_codes(codes)
    assert packed.shape == (N // 128, K // 64, 32, 128) and packed.is_contiguous()
    for n, b in elements(N, K // 2):
        assert packed[n // 128, b // 32, n % 128 // 4, 32 * (n % 4) + b % 32] == codes[n, b]
    assert torch.equal(packing.unpack_tile_codes(packed), codes)
    packed = packing.pack_tile_scales(scales)
    assert packed.shape == (N // 128, K // 64, 128)
    assert all(packed[n // 128, g, n % 128] == scales[g, n] for g, n in elements(K // 64, N))
    assert torch.equal(packing.unpack_tile_scales(packed), scales)
    packed = packing.pack_tile_up(up)
    assert packed.shape == (N // 128, R, 128)
    assert all(packed[n // 128, r, n % 128] == up[n, r] for n, r in elements(N, R))
    assert torch.equal(packing.unpack_tile_up(packed), up)


def golden(name: str) -> tuple[dict, dict]:
    """The packed tensors of a file, in the Python engine's naming, and what was expected of them."""
    tensors = load_file(GOLDEN / f"nunchaku_{name}.safetensors")
    parts = {PARTS.get(key, key): value for key, value in tensors.items() if "." not in key}
    return parts, {key: value for key, value in tensors.items() if "." in key}


@pytest.mark.parametrize("name", ["int4_signed", "int4_gelu_shifted", "nvfp4_tensor_scale", "nvfp4_channel_scale"])
def test_official_svdquant_layers(name):
    """Codes exactly, all else to the rounding of fp32; and back to the very bytes."""
    parts, expected = golden(name)
    weight, bias = read_svdquant("layer", parts, (256, 384), unsigned=name == "int4_gelu_shifted")[1:]
    assert_close(residual(weight), expected["expected.residual"])
    assert_close(dequantise(weight), expected["expected.weight"])
    assert_close(bias.float(), expected["expected.bias"])
    pack_scales = packing.pack_micro_scales if "nvfp4" in name else packing.pack_scales
    packed = {
        "qweight": packing.pack_codes(weight.codes),
        "wscales": pack_scales(weight.scale),
        "smooth_factor": packing.pack_vector(weight.smooth),
        "proj_down": packing.pack_down(weight.proj_down),
        "proj_up": packing.pack_up(weight.proj_up),
    }
    if "channel" in name:
        packed["wcscales"] = packing.pack_vector(weight.channel_scale).bfloat16()
    if "shifted" not in name:
        packed["bias"] = packing.pack_vector(bias)
    for key, value in packed.items():
        assert value.dtype == parts[key].dtype
        assert torch.equal(value.view(torch.uint8), parts[key].view(torch.uint8)), key


def test_official_awq_layer():
    parts, expected = golden("awq_adaln6")
    weight, bias = read_awq("layer", parts, (384, 384), chunks=6)[1:]
    # The exporter keeps what it has quantised in bf16.
    assert torch.equal(dequantise(weight).bfloat16().float(), expected["expected.weight"])
    # The file has bias + 1 in bf16.
    assert_close(bias + 1, expected["expected.bias"] + 1, units=0.5, dtype=torch.bfloat16)
    codes = packing.interleave(weight.codes ^ -0x78, 6, 0)
    assert torch.equal(packing.pack_awq(codes), parts["qweight"])
    assert torch.equal(packing.interleave(weight.scale, 6, 1), parts["wscales"][:6])


def test_both_outer_scales_count():
    """Exporters write one of the two, engines multiply by both."""
    parts, expected = golden("nvfp4_channel_scale")
    parts["wtscale"] = torch.tensor(0.5)
    weight = read_svdquant("layer", parts, (None, None), unsigned=False).weight
    assert_close(residual(weight), 0.5 * expected["expected.residual"])


def test_a_shifted_layer_without_a_bias():
    """What the engine's shift adds has nothing to make up for it: it is the bias."""
    parts, expected = golden("int4_gelu_shifted")
    stored = packing.unpack_vector(parts.pop("bias")).float()
    bias = read_svdquant("layer", parts, (None, None), unsigned=True).bias
    assert_close(bias, expected["expected.bias"] - stored)


def test_awq_with_zeros_of_its_own():
    parts, _ = golden("awq_adaln6")
    ordinary = read_awq("layer", parts, (None, None), chunks=6).weight
    parts["wzeros"] = -6 * parts["wscales"].float()
    weight = read_awq("layer", parts, (None, None), chunks=6).weight
    scale = weight.scale.float().T.repeat_interleave(64, dim=1)
    assert_close(dequantise(weight), dequantise(ordinary) + scale, units=8)
