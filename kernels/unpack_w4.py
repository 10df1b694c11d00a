"""4-bit weights as a dense matrix: codes, group scales, zero points, channel scales and smoothing in one pass.

W[n, k] = (value(code[n, k]) * scale[k / G, n] + zero[k / G, n]) * channel_scale[n] / smooth[k], in fp32, rounded once.
Grids: the two's complement of INT4, and E2M1 (OCP Microscaling 1.0). FP8 scales are E4M3 without infinities (OCP).
"""

import torch
from torch import Tensor

from . import registry

INT4, E2M1 = "int4", "e2m1"
E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
GROUPS = (16, 32, 64, 128, 256)  # input channels that share a scale


def unpack_nibbles(packed: Tensor) -> Tensor:
    """int8 or uint8 [..., K / 2] as uint8 [..., K] of 0..15, the low nibble first."""
    packed = packed.view(torch.uint8)
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def grid_values(grid: str, device: torch.device | None = None) -> Tensor:
    """What each of the 16 codes of a grid means: fp32 [16]."""
    if grid == INT4:
        values = [*range(8), *range(-8, 0)]
    else:
        values = [*E2M1_VALUES, *(-value for value in E2M1_VALUES)]
    return torch.tensor(values, dtype=torch.float32, device=device)


def unpack_values(codes: Tensor, grid: str) -> Tensor:
    """int8 [..., K / 2] as what the codes mean: fp32 [..., K]."""
    # A byte at a time: on a CPU thrice as fast as a code at a time.
    every = torch.arange(256, dtype=torch.uint8, device=codes.device)[:, None]
    pairs = grid_values(grid, codes.device)[unpack_nibbles(every).int()]
    return torch.nn.functional.embedding(codes.view(torch.uint8).int(), pairs).flatten(-2)


def unpack_w4(
    codes: Tensor,
    scale: Tensor,
    *,
    grid: str,
    zero: Tensor | None = None,
    channel_scale: Tensor | None = None,
    smooth: Tensor | None = None,
    dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """The dense weight [N, K] in `dtype`; without `smooth` in the basis of the smoothed input.

    codes: int8 [N, K / 2], rows dense, the low nibble of a byte is the even column; scale: [K / G, N], 16-bit, fp32 or
    float8_e4m3fn, any strides, G one of GROUPS for the kernel; grid: INT4 or E2M1; zero: [K / G, N] or None;
    channel_scale: fp32 [N] or [1] or None; smooth: [K] or None. dtype: fp16 or bf16 for the kernel.
    """
    return {"triton": _unpack_op, "reference": _reference}[backend](
        codes, scale, grid, zero, channel_scale, smooth, dtype
    )


def _reference(
    codes: Tensor,
    scale: Tensor,
    grid: str,
    zero: Tensor | None,
    channel_scale: Tensor | None,
    smooth: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    values = unpack_values(codes, grid).view(rows, scale.shape[0], -1)
    values *= scale.float().T[..., None]
    if zero is not None:
        values += zero.float().T[..., None]
    values = values.view(rows, columns)
    if channel_scale is not None:
        values *= channel_scale.float()[:, None]
    if smooth is not None:
        values /= smooth.float()
    return values.to(dtype)


def _unpack_fake(
    codes: Tensor,
    scale: Tensor,
    grid: str,
    zero: Tensor | None,
    channel_scale: Tensor | None,
    smooth: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(codes.shape[0], 2 * codes.shape[1], dtype=dtype)


def _unpack_triton(
    codes: Tensor,
    scale: Tensor,
    grid: str,
    zero: Tensor | None,
    channel_scale: Tensor | None,
    smooth: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    from .triton.unpack_w4 import launch

    columns, groups = 2 * codes.shape[1], scale.shape[0]
    if columns % groups or columns // groups not in GROUPS:
        raise ValueError(f"expected groups of {GROUPS} input channels, found {columns} in {groups} groups")
    return launch(codes, scale, grid == E2M1, zero, channel_scale, smooth, dtype)


_unpack_op = registry.custom_op("unpack_w4", _unpack_triton, _unpack_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: None) -> None:
    """The smallest call (registry.trial_problem)."""
    codes = torch.zeros(64, 64, dtype=torch.int8, device=device)
    unpack_w4(codes, codes.new_ones(2, 64, dtype=dtype), grid=INT4, dtype=dtype, backend="triton")
