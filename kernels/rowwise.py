"""Both ends of a matrix product at 8 bits: rows quantised with a step each, and integer sums scaled back.

codes[m] = x[m] / smooth / step[m], the largest of a row at the end of the range; y = (codes codesᵀ) * step stepᵀ + b.
"""

import torch
from torch import Tensor

from . import registry
from .quantise import INT8, LARGEST, row_codes


def quantise_rows(x: Tensor, smooth: Tensor | None, dtype: torch.dtype, *, backend: str) -> tuple[Tensor, Tensor]:
    """Codes [M, K] of x [M, K] / smooth [K] in `dtype`, INT8 or FP8 (quantise.py), and what a code of each row is
    worth: fp32 [M]. x: fp16, bf16 or fp32, rows dense."""
    return {"triton": _rows_op, "reference": _rows_reference}[backend](x, smooth, dtype)


def scale_sums(
    sums: Tensor, row_steps: Tensor, column_steps: Tensor, bias: Tensor | None, dtype: torch.dtype, *, backend: str
) -> Tensor:
    """sums int32 [M, N], rows dense, times row_steps fp32 [M] and column_steps fp32 [N], plus bias [N], in fp32 and
    rounded once to `dtype`."""
    return {"triton": _sums_op, "reference": _sums_reference}[backend](sums, row_steps, column_steps, bias, dtype)


def _rows_reference(x: Tensor, smooth: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return row_codes(x if smooth is None else x.float() / smooth.float(), dtype)


def _sums_reference(
    sums: Tensor, row_steps: Tensor, column_steps: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    out = sums.float() * row_steps[:, None] * column_steps
    return (out if bias is None else out + bias.float()).to(dtype)


def _rows_fake(x: Tensor, smooth: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(x.shape[0], dtype=torch.float32)


def _rows_triton(x: Tensor, smooth: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from .triton.rowwise import quantise

    return quantise(x, smooth, dtype, largest=LARGEST[dtype])


_rows_op = registry.custom_op("quantise_rows", _rows_triton, _rows_fake)


def _sums_fake(
    sums: Tensor, row_steps: Tensor, column_steps: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return sums.new_empty(sums.shape, dtype=dtype)


def _sums_triton(
    sums: Tensor, row_steps: Tensor, column_steps: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    from .triton.rowwise import scale

    return scale(sums, row_steps, column_steps, bias, dtype)


_sums_op = registry.custom_op("scale_sums", _sums_triton, _sums_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: None) -> None:
    """The smallest call (registry.trial_problem)."""
    x = torch.zeros(16, 1024, dtype=dtype, device=device)
    codes, steps = quantise_rows(x, None, INT8, backend="triton")
    scale_sums(codes.int(), steps, steps.new_ones(1024), None, dtype, backend="triton")
