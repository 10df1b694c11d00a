"""Triton kernel of quantise.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

from .gather import chunk_rows

ROWS = 64  # rows written by one program


def launch(
    k: Tensor,
    v: Tensor,
    tokens: Tensor,
    index: Tensor,
    chunk_start: Tensor,
    chunk_live: Tensor,
    chunk: int,
    shift: Tensor,
    steps: Tensor | None,
    chunks: tuple[Tensor, Tensor, Tensor],
    largest: tuple[float, float],
) -> None:
    """See quantise.quantise_chunks; the result goes to `chunks`: keys, their steps, values. largest: code of keys and
    of values, 0 for what keeps its dtype."""
    batch, heads, _, dim = k.shape
    capacity = chunk_start.shape[1]
    keys, key_steps, values = chunks
    with torch.cuda.device_of(k):
        _quantise[(triton.cdiv(capacity * chunk, ROWS), batch * heads)](
            k,
            v,
            keys,
            key_steps,
            values,
            tokens.contiguous(),
            index.contiguous(),
            chunk_start.contiguous(),
            chunk_live.contiguous(),
            shift.contiguous(),
            (shift if steps is None else steps).contiguous(),
            *k.stride()[:3],
            *v.stride()[:3],
            heads,
            tokens.shape[1],
            capacity,
            DIM=dim,
            ROWS=ROWS,
            CHUNK=chunk,
            LARGEST=largest[0],
            LARGEST_VALUE=largest[1],
        )


@triton.jit
def row_codes(x, LARGEST: tl.constexpr, dtype: tl.constexpr):
    """Codes of the rows of x fp32 [R, D], int8 or float8e4nv, and the rows' steps [R]. The step of a row with a NaN or
    an infinity is NaN, and so is all that is multiplied by it; no code of INT8 could say so."""
    # Magnitudes rank alike as floats and as integers, where NaN ranks highest. A GPU's maximum of floats drops it.
    largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1).to(tl.float32, bitcast=True)
    scaled = x * (LARGEST / tl.maximum(largest, 1e-30))[:, None]
    if dtype == tl.int8:
        scaled = tl.floor(scaled + 0.5)
    return scaled.to(dtype), tl.where(largest < float("inf"), largest / LARGEST, float("nan"))


@triton.jit(do_not_specialize=["heads", "length", "capacity"])
def _quantise(
    k,
    v,
    keys,
    key_steps,
    values,
    tokens,
    index,
    chunk_start,
    chunk_live,
    shift,
    steps,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    length,
    capacity,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    LARGEST: tl.constexpr,
    LARGEST_VALUE: tl.constexpr,
):
    pair = tl.program_id(1).to(tl.int64)
    batch = pair // heads
    head = pair % heads
    order = tl.load(index + pair).to(tl.int64)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < capacity * CHUNK
    live, token = chunk_rows(
        row, tokens + order * length, chunk_start + order * capacity, chunk_live + order * capacity, capacity, CHUNK
    )
    dim = tl.arange(0, DIM)

    source = k + batch * k_batch + head * k_head
    x = tl.load(source + token[:, None] * k_token + dim[None, :], mask=live[:, None], other=0.0).to(tl.float32)
    x = tl.where(live[:, None], x - tl.load(shift + pair * DIM + dim)[None, :], 0.0)
    target = pair * capacity * CHUNK + row
    if LARGEST > 0:
        x, step = row_codes(x, LARGEST, keys.dtype.element_ty)
        tl.store(key_steps + target, step, mask=inside)
    tl.store(keys + target[:, None] * DIM + dim[None, :], x.to(keys.dtype.element_ty), mask=inside[:, None])

    source = v + batch * v_batch + head * v_head
    x = tl.load(source + token[:, None] * v_token + dim[None, :], mask=live[:, None], other=0.0)
    if LARGEST_VALUE > 0:  # each chunk is stored transposed
        step = tl.load(steps + pair * DIM + dim)
        x = x.to(tl.float32) / tl.maximum(step, 1e-30)[None, :]
        x = tl.clamp(x, -LARGEST_VALUE, LARGEST_VALUE, propagate_nan=tl.PropagateNan.ALL)
        chunk = (pair * capacity + row // CHUNK) * (CHUNK * DIM)
        target = (chunk + row % CHUNK)[:, None] + dim[None, :] * CHUNK
    else:
        target = target[:, None] * DIM + dim[None, :]
    tl.store(values + target, x.to(values.dtype.element_ty), mask=inside[:, None])
