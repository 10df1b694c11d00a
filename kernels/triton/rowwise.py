"""Triton kernels of rowwise.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import registry
from .quantise import row_codes

ROWS, COLUMNS = 4, 512  # scaled by one program
THREADS, WIDEST = 1024, 16384  # of a program at most; columns from which one takes all of them


def quantise(x: Tensor, smooth: Tensor | None, dtype: torch.dtype, *, largest: float) -> tuple[Tensor, Tensor]:
    """See rowwise.quantise_rows. largest: code of the dtype."""
    rows, columns = x.shape
    codes = x.new_empty(rows, columns, dtype=dtype)
    steps = x.new_empty(rows, dtype=torch.float32)
    # A row stays in registers between the search for its largest number and its rounding. The widest need all threads
    # that a program may have: with half of them sm_120 runs out of registers.
    width = triton.next_power_of_2(columns)
    most = THREADS // (64 if registry.architecture(x.device).startswith("gfx9") else 32)
    with torch.cuda.device_of(x):
        _rows[(rows,)](
            x,
            smooth,
            codes,
            steps,
            x.stride(0),
            columns,
            LARGEST=largest,
            WIDTH=width,
            num_warps=most if width >= WIDEST else max(1, width // 1024),
        )
    return codes, steps


def scale(sums: Tensor, row_steps: Tensor, column_steps: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """See rowwise.scale_sums."""
    rows, columns = sums.shape
    out = sums.new_empty(rows, columns, dtype=dtype)
    with torch.cuda.device_of(sums):
        _scale[(triton.cdiv(rows, ROWS), triton.cdiv(columns, COLUMNS))](
            sums, row_steps, column_steps, bias, out, sums.stride(0), rows, columns, ROWS=ROWS, COLUMNS=COLUMNS
        )
    return out


@triton.jit
def _rows(x, smooth, codes, steps, x_row, columns, LARGEST: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < columns
    values = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    if smooth is not None:
        values = values / tl.load(smooth + column, mask=inside, other=1.0).to(tl.float32)
        values = tl.where(inside, values, 0.0)
    rounded, step = row_codes(values[None, :], LARGEST, codes.dtype.element_ty)
    tl.store(codes + row * columns + column[None, :], rounded, mask=inside[None, :])
    tl.store(steps + row + tl.arange(0, 1), step)


@triton.jit(do_not_specialize=["rows"])
def _scale(
    sums, row_steps, column_steps, bias, out, sums_row, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    mask = (row < rows)[:, None] & inside[None, :]
    step = tl.load(row_steps + row, mask=row < rows, other=0.0)
    row = row.to(tl.int64)
    values = tl.load(sums + row[:, None] * sums_row + column[None, :], mask=mask, other=0).to(tl.float32)
    values = values * step[:, None] * tl.load(column_steps + column, mask=inside, other=0.0)[None, :]
    if bias is not None:
        values = values + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], values.to(out.dtype.element_ty), mask=mask)
