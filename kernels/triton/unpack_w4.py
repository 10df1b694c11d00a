"""Triton kernel of unpack_w4.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 16  # of 16-bit scales, which lie row beside row, 16 fill a sector of memory
COLUMNS = 256  # with 4 warps, a thread loads 8 bytes of codes at once and stores 16


def launch(
    codes: Tensor,
    scale: Tensor,
    is_e2m1: bool,
    zero: Tensor | None,
    channel_scale: Tensor | None,
    smooth: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """See unpack_w4.unpack_w4. is_e2m1: whether the grid is E2M1, not INT4."""
    rows, columns = codes.shape[0], 2 * codes.shape[1]
    out = codes.new_empty(rows, columns, dtype=dtype)
    eight_bits = scale.dtype == torch.float8_e4m3fn
    with torch.cuda.device_of(codes):
        _unpack[(triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))](
            codes.view(torch.uint8),
            scale.view(torch.uint8) if eight_bits else scale,
            zero,
            channel_scale,
            smooth,
            out,
            codes.stride(0),
            *scale.stride(),
            *((0, 0) if zero is None else zero.stride()),
            rows,
            columns,
            GROUP=columns // scale.shape[0],
            EIGHT_BITS=eight_bits,
            IS_E2M1=is_e2m1,
            ONE_SCALE=channel_scale is not None and channel_scale.numel() == 1,
            ROWS=ROWS,
            COLUMNS=COLUMNS,
        )
    return out


@triton.jit
def _e4m3(byte):
    """FP8 from its bits: chips before sm_89 have no instruction for it, and gfx942 one for another FP8."""
    magnitude = (byte & 127).to(tl.int32)
    # The exponent's bias grows from 7 to 127.
    normal = ((magnitude << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    value = tl.where(magnitude == 127, float("nan"), value)
    return tl.where(byte > 127, -value, value)


@triton.jit
def _e2m1(code):
    magnitude = code & 7
    normal = ((magnitude << 22) + (126 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(magnitude < 2, magnitude.to(tl.float32) * 0.5, normal)
    return tl.where(code > 7, -value, value)


@triton.jit(do_not_specialize=["rows"])
def _unpack(
    codes,
    scale,
    zero,
    channel_scale,
    smooth,
    out,
    codes_row,
    scale_group,
    scale_row,
    zero_group,
    zero_row,
    rows,
    columns,
    GROUP: tl.constexpr,
    EIGHT_BITS: tl.constexpr,
    IS_E2M1: tl.constexpr,
    ONE_SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    inside = row < rows
    row = row.to(tl.int64)

    byte = first // 2 + tl.arange(0, COLUMNS // 2)
    mask = inside[:, None] & (byte < columns // 2)[None, :]
    packed = tl.load(codes + row[:, None] * codes_row + byte[None, :], mask=mask, other=0).to(tl.int32)
    code = tl.reshape(tl.join(packed & 15, packed >> 4), (ROWS, COLUMNS // GROUP, GROUP))
    if IS_E2M1:
        value = _e2m1(code)
    else:
        value = ((code ^ 8) - 8).to(tl.float32)

    group = first // GROUP + tl.arange(0, COLUMNS // GROUP)
    mask = inside[:, None] & (group < columns // GROUP)[None, :]
    factor = tl.load(scale + row[:, None] * scale_row + group[None, :] * scale_group, mask=mask, other=0)
    if EIGHT_BITS:
        factor = _e4m3(factor)
    value = value * factor.to(tl.float32)[:, :, None]
    if zero is not None:
        offset = tl.load(zero + row[:, None] * zero_row + group[None, :] * zero_group, mask=mask, other=0)
        value = value + offset.to(tl.float32)[:, :, None]
    value = tl.reshape(value, (ROWS, COLUMNS))

    if channel_scale is not None:
        if ONE_SCALE:
            value = value * tl.load(channel_scale).to(tl.float32)
        else:
            value = value * tl.load(channel_scale + row, mask=inside, other=0).to(tl.float32)[:, None]
    column = first + tl.arange(0, COLUMNS)
    if smooth is not None:
        value = value / tl.load(smooth + column, mask=column < columns, other=1).to(tl.float32)[None, :]
    mask = inside[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], value.to(out.dtype.element_ty), mask=mask)
