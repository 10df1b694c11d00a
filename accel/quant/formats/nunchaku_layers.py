"""One 4-bit linear layer of a nunchaku file.

Formats: what deepcompressor's exporter for nunchaku writes (SVDQuant, INT4 and NVFP4), and tinychat's W4A16 (AWQ) for
the layers that compute adaLN's shifts, scales and gates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from .. import packing
from ..joining import Linear
from ..weight4 import E2M1, INT4, Weight4
from .checks import FLOATS, FLOATS_16, FP8, expect, expect_parts

# The engine in C++ and the one in Python name the same tensors differently.
PARTS = {
    "smooth": "smooth_factor",
    "smooth_orig": "smooth_factor_orig",
    "lora_down": "proj_down",
    "lora_up": "proj_up",
}
OPTIONAL = ("bias", "wtscale", "wcscales", "smooth_factor", "smooth_factor_orig", "proj_down", "proj_up")
TILE, GROUP = 128, 64


def read_svdquant(
    layer: str, parts: Mapping[str, Tensor], shape: tuple[int | None, int | None], unsigned: bool
) -> Linear:
    """An SVDQuant layer in natural order, without padding.

    parts: the tensors by name, in the Python engine's naming (see PARTS). shape: N and K as the model has them; None
    stands for what the file has, padding included. unsigned: the input is the output of a GELU. In INT4 such a layer's
    bias makes up for the shift of its input; here it is plain again, in fp32.

    Raises ValueError naming layer and tensor.
    """
    expect_parts(layer, parts, ("qweight", "wscales"), OPTIONAL)
    codes = parts["qweight"]
    expect(f"{layer}.qweight", codes, (torch.int8,), None, None)
    padded = codes.shape[0], 2 * codes.shape[1]
    rows, columns = _without_padding(layer, padded, shape)
    fp4 = parts["wscales"].dtype == FP8
    group = 16 if fp4 else GROUP
    expect(f"{layer}.wscales", parts["wscales"], (*FLOATS_16, FP8), padded[1] // group, padded[0])
    unpack = packing.unpack_micro_scales if fp4 else packing.unpack_scales
    down, up = _low_rank(layer, parts, padded)
    smooth = _vector(layer, parts, "smooth_factor", padded[1], columns)
    bias = _vector(layer, parts, "bias", padded[0], rows)
    if smooth is not None and not smooth.all():
        raise ValueError(f"{layer}.smooth_factor: expected divisors, found zero")
    # Copies: a slice would keep the padding alive, and what is sliced by columns has gaps.
    weight = Weight4(
        packing.unpack_codes(codes)[:rows, : columns // 2].contiguous(),
        unpack(parts["wscales"])[: columns // group, :rows].contiguous(),
        E2M1 if fp4 else INT4,
        channel_scale=_channel_scale(layer, parts, padded[0], rows),
        smooth=smooth,
        proj_down=None if down is None else down[:columns],
        proj_up=None if up is None else up[:rows],
    )
    if unsigned and not fp4:
        weight = replace(weight, unsigned_from=0)
        bias = weight.shift + (0 if bias is None else bias.float())
    return Linear(layer, weight, bias)


def read_awq(layer: str, parts: Mapping[str, Tensor], shape: tuple[int | None, int | None], chunks: int) -> Linear:
    """A W4A16 layer in natural order. Its outputs are `chunks` vectors of one length, which the file interleaves; the
    second of every three multiplies what is normalised, and the 1 which models add to it is in the file's bias: here
    it is out again, and the bias is fp32. chunks 1: an ordinary layer.

    Raises ValueError naming layer and tensor.
    """
    expect_parts(layer, parts, ("qweight", "wscales", "wzeros"), ("bias",))
    words = parts["qweight"]
    expect(f"{layer}.qweight", words, (torch.int32,), None, None)
    rows, columns = 4 * words.shape[0], 2 * words.shape[1]
    sizes = zip(shape, (rows, columns), strict=True)
    if columns % GROUP or rows % chunks or any(size not in (None, own) for size, own in sizes):
        expected = f"a layer {_sizes(shape)}, a multiple of {chunks} outputs and of {GROUP} inputs"
        raise ValueError(f"{layer}.qweight: expected {expected}, found {_sizes((rows, columns))}")
    groups = columns // GROUP
    scales = {}
    for part in ("wscales", "wzeros"):
        expect(f"{layer}.{part}", parts[part], FLOATS, None, rows)
        if parts[part].shape[0] < groups:
            raise ValueError(f"{layer}.{part}: expected {groups} rows at least, found {parts[part].shape[0]}")
        scales[part] = packing.deinterleave(parts[part][:groups], chunks, 1).contiguous()
    # The file's codes are 0..15 with code 0 at its zero; ours are -8..7: the upper bit of every nibble turns.
    codes = packing.deinterleave(packing.unpack_awq(words), chunks, 0) ^ -0x78
    scale, zero = scales["wscales"], scales["wzeros"]
    # The exporter's zeros are -7 scales rounded to 16 bits: without that rounding, zero + 8 scales is one scale.
    zero = scale if torch.equal(zero, -7 * scale) else zero.float() + 8 * scale.float()
    bias = parts.get("bias")
    if bias is not None:
        expect(f"{layer}.bias", bias, FLOATS, rows)
        bias = packing.deinterleave(bias.float(), chunks, 0).view(chunks, -1)
        bias[1::3] -= 1
        bias = bias.flatten()
    return Linear(layer, Weight4(codes, scale, INT4, zero), bias)


def _without_padding(layer: str, padded: tuple[int, int], shape: tuple[int | None, int | None]) -> tuple[int, int]:
    """N and K, which the file rounds up to whole tiles."""
    rows, columns = (own if size is None else size for size, own in zip(shape, padded, strict=True))
    if any(own % TILE or not 0 <= own - size < TILE for size, own in zip((rows, columns), padded, strict=True)):
        expected = f"a layer {_sizes(shape)} in tiles of {TILE}x{TILE}"
        raise ValueError(f"{layer}.qweight: expected {expected}, found {_sizes(padded)}")
    if columns % GROUP:
        raise ValueError(f"{layer}: expected a multiple of {GROUP} inputs, found {columns}")
    return rows, columns


def _sizes(shape: tuple[int | None, ...]) -> str:
    return "x".join("any" if size is None else str(size) for size in shape)


def _vector(layer: str, parts: Mapping[str, Tensor], part: str, padded: int, size: int) -> Tensor | None:
    """A packed vector in natural order, without padding."""
    if part not in parts:
        return None
    expect(f"{layer}.{part}", parts[part], FLOATS, padded)
    return packing.unpack_vector(parts[part])[:size]


def _low_rank(
    layer: str, parts: Mapping[str, Tensor], padded: tuple[int, int]
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    if "proj_down" not in parts and "proj_up" not in parts:
        return None, None
    expect_parts(layer, parts, ("proj_down", "proj_up"), ("qweight", "wscales", *OPTIONAL))
    down, up = parts["proj_down"], parts["proj_up"]
    expect(f"{layer}.proj_down", down, FLOATS, padded[1], None)
    expect(f"{layer}.proj_up", up, FLOATS, padded[0], down.shape[1])
    if down.shape[1] % 16 or not down.shape[1]:
        raise ValueError(f"{layer}.proj_down: expected a rank that is a multiple of 16, found {down.shape[1]}")
    return packing.unpack_down(down), packing.unpack_up(up)


def _channel_scale(layer: str, parts: Mapping[str, Tensor], padded: int, rows: int) -> Tensor | None:
    """The scale of the tensor times those of its outputs, fp32 [1] or [N]."""
    scale = None
    if "wtscale" in parts:
        scale = parts["wtscale"].reshape(-1)
        expect(f"{layer}.wtscale", scale, FLOATS, 1)
        scale = scale.float()
    channels = _vector(layer, parts, "wcscales", padded, rows)
    if channels is not None:
        scale = channels.float() if scale is None else channels.float() * scale
    return scale
