"""A small SVDQuant quantiser and nunchaku packer for tests: plain round-to-nearest, no search."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_accel.accel.quant import packing
from dit_accel.accel.quant.weight4 import E2M1, E2M1_VALUES, INT4, Weight4, dequantise, pack_nibbles, shift_bias

RANK = 16
FP8 = torch.float8_e4m3fn


def smoothing(weight: Tensor, absmax: Tensor) -> Tensor:
    """Activation divisors bf16 [K] with both exponents 1/2, for W [N, K] and the largest inputs |x| [K]."""
    return (absmax / weight.abs().amax(dim=0)).sqrt().clamp(1 / 64, 64).bfloat16()


def quantise(
    weight: Tensor,
    smooth: Tensor | None = None,
    *,
    grid: str = INT4,
    rank: int = RANK,
    unsigned: bool = False,
    by_channel: bool = False,
) -> Weight4:
    """W fp32 [N, K] in 4 bits beside a low-rank part found in the smoothed basis. NVFP4 has an outer scale of the
    tensor, or one of every output (by_channel)."""
    divisor = torch.ones(weight.shape[1]) if smooth is None else smooth.float()
    left, singular, right = _largest(weight * divisor, rank)
    proj_up = (left * singular).bfloat16()
    proj_down = (right / divisor[:, None]).contiguous().bfloat16()
    rest = (weight - proj_up.float() @ proj_down.float().T) * divisor
    codes, scale, channel_scale = _int4(rest) if grid == INT4 else _nvfp4(rest, by_channel)
    unsigned_from = 0 if unsigned else None
    return Weight4(codes, scale, grid, None, channel_scale, smooth, proj_down, proj_up, unsigned_from)


def _largest(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [N, rank], S [rank] and V [K, rank] of a matrix's largest singular values, nearly so where it is large."""
    if min(matrix.shape) > 2048:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return torch.svd_lowrank(matrix, rank)
    left, singular, right = torch.linalg.svd(matrix, full_matrices=False)
    return left[:, :rank], singular[:rank], right[:rank].T


def _int4(rest: Tensor) -> tuple[Tensor, Tensor, None]:
    groups = rest.unflatten(1, (-1, 64))
    scale = (groups.abs().amax(dim=2) / 7).clamp(min=1e-6).bfloat16()
    codes = (groups / scale.float()[..., None]).round().clamp(-7, 7).flatten(1)
    return pack_nibbles(codes.to(torch.int8)), scale.T.contiguous(), None


def _nvfp4(rest: Tensor, by_channel: bool) -> tuple[Tensor, Tensor, Tensor]:
    groups = rest.unflatten(1, (-1, 16))
    largest = groups.abs().amax(dim=2)
    outer = ((largest.amax(dim=1) if by_channel else largest.amax()[None]) / (6 * 448)).bfloat16().float()
    scale = (largest / 6 / outer[:, None]).to(FP8)
    step = (scale.float() * outer[:, None]).clamp(min=1e-12)
    codes = ((groups / step[..., None]).abs()[..., None] - torch.tensor(E2M1_VALUES)).abs().argmin(dim=-1)
    codes = (codes + 8 * (groups < 0)).flatten(1)
    return pack_nibbles(codes), scale.T.contiguous(), outer


def pack_svdquant(weight: Weight4, bias: Tensor | None) -> tuple[dict[str, Tensor], Tensor | None]:
    """The layer's tensors in a nunchaku file, in the Python engine's naming, padded to whole tiles; and the plain bias
    that they stand for: the one given, after rounding to bf16."""
    rows, columns = weight.shape
    down, right = -rows % 128, -columns % 128

    def vector(values: Tensor, padding: int) -> Tensor:
        return packing.pack_vector(F.pad(values, (0, padding), value=1))

    groups = right // weight.group
    scale = F.pad(weight.scale.float(), (0, down, 0, groups), value=1).to(weight.scale.dtype)
    pack_scales = packing.pack_scales if weight.grid == INT4 else packing.pack_micro_scales
    parts = {
        "qweight": packing.pack_codes(F.pad(weight.codes, (0, right // 2, 0, down))),
        "wscales": pack_scales(scale),
        "proj_down": packing.pack_down(F.pad(weight.proj_down, (0, 0, 0, right))),
        "proj_up": packing.pack_up(F.pad(weight.proj_up, (0, 0, 0, down))),
    }
    if weight.smooth is not None:
        parts["smooth_factor"] = parts["smooth_factor_orig"] = vector(weight.smooth, right)
    if weight.channel_scale is not None:
        outer = weight.channel_scale.bfloat16()
        parts |= {"wtscale": outer} if outer.numel() == 1 else {"wcscales": vector(outer, down)}
    if bias is not None:
        shifted = weight.unsigned_from is not None and weight.grid == INT4
        shift = shift_bias(weight) if shifted else 0
        stored = (bias - shift).bfloat16()
        parts["bias"] = vector(stored, down)
        bias = stored.float() + shift
    return {name: part.contiguous() for name, part in parts.items()}, bias


def pack_awq(weight: Tensor, bias: Tensor, chunks: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """An adaLN layer of `chunks` vectors in a nunchaku file: its tensors, and the plain weight and bias that they
    stand for."""
    groups = weight.unflatten(1, (-1, 64))
    scale = (groups.abs().amax(dim=2) / 7).bfloat16()
    steps = (groups / scale.float()[..., None]).round().clamp(-7, 7)
    ones = torch.zeros_like(bias).view(chunks, -1)
    ones[1::3] = 1
    stored = (bias + ones.flatten()).bfloat16()
    codes = pack_nibbles((steps + 7).flatten(1).to(torch.uint8))
    scales = F.pad(packing.interleave(scale.T, chunks, 1), (0, 0, 0, -scale.shape[1] % 16))
    parts = {
        "qweight": packing.pack_awq(packing.interleave(codes, chunks, 0)),
        "wscales": scales.contiguous(),
        "wzeros": (-7 * scales).contiguous(),
        "bias": packing.interleave(stored, chunks, 0).contiguous(),
    }
    return parts, (steps * scale.float()[..., None]).flatten(1), stored.float() - ones.flatten()


__all__ = ["E2M1", "INT4", "RANK", "dequantise", "pack_awq", "pack_svdquant", "quantise", "smoothing"]
