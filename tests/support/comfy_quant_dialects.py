"""One 4-bit layer as three other programs write it, from a Weight4 and its plain bias, and layers to write.

Written from the formats' descriptions and not from the pack's own packing, which the tests hold against it.
"""

import json

import torch

from dit_accel.accel.quant.weight4 import Weight4, pack_nibbles, shift_bias, unpack_nibbles


def quantise(dense: torch.Tensor, group: int = 64, dtype: torch.dtype = torch.bfloat16):
    """Codes int8 [N, K / 2] and scale [K / G, N] of [N, K], rounded to the nearest of -7..7."""
    rows, columns = dense.shape
    groups = dense.view(rows, columns // group, group)
    scale = (groups.abs().amax(-1) / 7).to(dtype)
    codes = (groups / scale.float()[..., None]).round().clamp(-7, 7)
    return pack_nibbles(codes.view(rows, columns).to(torch.int8)), scale.T.contiguous()


def low_rank(dense: torch.Tensor, rank: int):
    """The best proj_up [N, R] and proj_down [K, R] for [N, K]."""
    left, values, right = torch.linalg.svd(dense, full_matrices=False)
    return left[:, :rank] * values[:rank], right[:rank].T.contiguous()


def make_layer(rows=256, columns=128, rank=16, seed=0, dtype=torch.bfloat16, unsigned=False, dense=None, smooth=None):
    """An honest SVDQuant layer: its Weight4 and its plain bias, fp32 where unsigned and else of `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    if dense is None:
        dense = torch.randn(rows, columns, generator=generator) / columns**0.5
    if smooth is None:
        smooth = torch.exp(torch.randn(dense.shape[1], generator=generator) * 0.7)
    smooth = smooth.to(dtype)
    up, down = low_rank(dense * smooth.float(), rank)
    up, down = up.to(dtype), (down / smooth.float()[:, None]).to(dtype)
    left = dense * smooth.float() - up.float() @ (down.float() * smooth.float()[:, None]).T
    codes, scale = quantise(left, dtype=dtype)
    # What a file can say about a layer without a branch is that its rank is 0.
    ranked = {"proj_down": down, "proj_up": up} if rank else {}
    weight = Weight4(codes, scale, smooth=smooth, unsigned_from=0 if unsigned else None, **ranked)
    bias = torch.randn(dense.shape[0], generator=generator).to(dtype)
    if unsigned:
        # As a reader finds it: the file has a 16-bit bias that holds the shift.
        bias = ((bias.float() - shift_bias(weight)).to(dtype).double() + shift_bias(weight).double()).float()
    return weight, bias


def make_awq(rows=256, columns=128, group=64, seed=0, dtype=torch.bfloat16):
    """A Weight4 with zeros, and its bias."""
    generator = torch.Generator().manual_seed(seed)
    codes = pack_nibbles(torch.randint(0, 16, (rows, columns), generator=generator))
    scale, zero = (torch.rand(columns // group, rows, generator=generator).to(dtype) * 0.02 for _ in range(2))
    return Weight4(codes, scale, zero=zero), torch.randn(rows, generator=generator).to(dtype)


def marker(**fields) -> torch.Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def disk_bias(weight: Weight4, bias: torch.Tensor) -> torch.Tensor:
    """The bias as engines take it."""
    if weight.unsigned_from is None:
        return bias
    return (bias.double() - shift_bias(weight).double()).to(weight.scale.dtype)


def kitchen(layer: str, weight: Weight4, bias: torch.Tensor, **fields) -> dict[str, torch.Tensor]:
    """comfy-kitchen's names and natural order, with convert_to_quant's JSON."""
    rows, columns = weight.shape
    about = {
        "format": "svdquant_w4a4",
        "group_size": 64,
        "rank": weight.rank,
        "orig_dtype": "torch.bfloat16",
        "orig_shape": [rows, columns],
        "act_unsigned": weight.unsigned_from is not None,
        "smooth_mode": "external",
        "learned_round": True,
    }
    return {
        f"{layer}.weight": weight.codes,
        f"{layer}.weight_scale": weight.scale,
        f"{layer}.weight_proj_down": weight.proj_down,
        f"{layer}.weight_proj_up": weight.proj_up,
        f"{layer}.weight_smooth_factor": weight.smooth,
        f"{layer}.bias": disk_bias(weight, bias),
        f"{layer}.comfy_quant": marker(**about, **fields),
    }


def tiles(layer: str, weight: Weight4, bias: torch.Tensor, **fields) -> dict[str, torch.Tensor]:
    """comfy-quants' names and tiles: 128 output channels, of which four and four lie side by side."""
    rows, columns = weight.shape
    row_tiles = range(rows // 128)
    packed = torch.empty(rows // 128, columns // 64, 32, 128, dtype=torch.int8)
    for row in range(rows):
        for group in range(columns // 64):
            piece = weight.codes[row, 32 * group : 32 * group + 32]
            packed[row // 128, group, row % 128 // 4, 32 * (row % 4) : 32 * (row % 4) + 32] = piece
    about = {
        "format": "svdquant_w4a4",
        "layout": "kitchen_tile_packed_w4a4",
        "lowrank_branch_input_basis": "raw",
        "proj_down_smooth_folded": True,
    }
    if weight.unsigned_from is not None:
        about["act_unsigned"] = True
    return {
        f"{layer}.weight": packed,
        f"{layer}.weight_scale": torch.stack([weight.scale[:, 128 * tile : 128 * tile + 128] for tile in row_tiles]),
        f"{layer}.proj_down": weight.proj_down,
        f"{layer}.proj_up": torch.stack([weight.proj_up[128 * tile : 128 * tile + 128].T for tile in row_tiles]),
        f"{layer}.smooth_factor": weight.smooth,
        f"{layer}.bias": disk_bias(weight, bias),
        f"{layer}.comfy_quant": marker(**about | fields),
    }


def awq(layer: str, weight: Weight4, bias: torch.Tensor, zero: str = "weight_zeros") -> dict[str, torch.Tensor]:
    """ComfyUI core 0.38's names; comfy-quants calls the zeros `weight_zero`. Codes 0..15 stand for -8..7."""
    signed = unpack_nibbles(weight.codes).to(torch.int8)
    signed = torch.where(signed > 7, signed - 16, signed)
    return {
        f"{layer}.weight": pack_nibbles(signed + 8),
        f"{layer}.weight_scale": weight.scale,
        f"{layer}.{zero}": weight.zero,
        f"{layer}.bias": bias,
        f"{layer}.comfy_quant": marker(format="awq_w4a16", group_size=weight.group),
    }


def same(left, right) -> bool:
    """Whether two readings are the same to the bit: keys, kinds of weights, dtypes, shapes and values."""
    if left.keys() != right.keys():
        return False
    return all(_same_value(left[key], right[key]) for key in left)


def _same_value(left, right) -> bool:
    if isinstance(left, Weight4) != isinstance(right, Weight4):
        return False
    if isinstance(left, Weight4):
        plain = (left.grid, left.unsigned_from) == (right.grid, right.unsigned_from)
        return plain and same(left.tensors(), right.tensors())
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)
