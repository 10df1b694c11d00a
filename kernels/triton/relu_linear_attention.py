"""Triton kernels of relu_linear_attention.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import registry

# Numbers of keys, of values or of queries in one step of a program. With twice as many, the code that
# triton 3.6.0 makes for fp32, and for gfx11 altogether, spills. Nothing was timed.
TILE = {"sm_80": 2048, "gfx942": 2048, "gfx1100": 1024, "gfx1201": 2048, "interpreter": 2048}
FP32_TILE = 512


def launch_sums(qkv: Tensor, head_dim: int, *, part: int) -> Tensor:
    """See relu_linear_attention.kv_sums. part: tokens that one program sums."""
    batch, channels, height, width = qkv.shape
    heads, parts = channels // (3 * head_dim), triton.cdiv(height * width, part)
    # Parts are added by a second reduction and not atomically, so equal inputs give equal results.
    partial = qkv.new_empty(batch, heads, parts, head_dim + 1, head_dim, dtype=torch.float32)
    with torch.cuda.device_of(qkv):
        _kv_sums[(parts * batch * heads,)](
            qkv, partial, parts, *_how_to_read(qkv), heads, **_options(qkv, head_dim, part)
        )
    return partial.sum(2)


def launch_apply(qkv: Tensor, sums: Tensor, out: Tensor, head_dim: int, *, part: int, epsilon: float) -> None:
    """See relu_linear_attention.apply_sums; the result goes to `out`. part: tokens of one program."""
    batch, channels, height, width = qkv.shape
    heads, parts = channels // (3 * head_dim), triton.cdiv(height * width, part)
    # Either layout of the result has a token behind a token.
    out_batch, out_channel, _, out_token = out.stride()
    with torch.cuda.device_of(qkv):
        _apply_sums[(parts * batch * heads,)](
            qkv,
            sums.contiguous(),
            out,
            *_how_to_read(qkv),
            heads,
            out_batch,
            out_channel,
            out_token,
            EPSILON=epsilon,
            **_options(qkv, head_dim, part),
        )


def _how_to_read(qkv: Tensor) -> tuple[int, ...]:
    """Tokens, tokens in a row, and the strides of qkv."""
    return qkv.shape[2] * qkv.shape[3], qkv.shape[3], *qkv.stride()


def _options(qkv: Tensor, head_dim: int, part: int) -> dict:
    rows, columns = qkv.shape[2:]
    chip = registry.architecture(qkv.device)
    numbers = FP32_TILE if qkv.dtype == torch.float32 else registry.nearest(TILE, chip)
    return {
        "FLAT": rows == 1 or qkv.stride(2) == columns * qkv.stride(3),
        "DIM": head_dim,
        "PART": part,
        "TOKENS": numbers // head_dim,
        "PRECISION": _precision(chip),
        "num_warps": 4,
        "num_stages": 3,
    }


def _precision(chip: str) -> str:
    """How fp32 numbers are multiplied: what it costs in accuracy stands in kernels/relu_linear_attention.py."""
    if chip == "interpreter":
        return "ieee"  # it multiplies in fp32 and has no word for parts
    if registry.triton_version() >= (3, 6):
        return "bf16x6"
    return "tf32x3" if chip.startswith("sm_") else "ieee"


@triton.jit
def _relu(x):
    """In fp32; NaN stays, as in PyTorch."""
    x = x.to(tl.float32)
    return tl.where(x < 0, 0.0, x)


@triton.jit
def _place(token, columns, row_stride, column_stride, FLAT: tl.constexpr):
    """Where tokens lie from the first one on. Flat: rows follow each other without a gap, so that the compiler sees
    which tokens lie side by side."""
    if FLAT:
        place = token.to(tl.int64) * column_stride
    else:
        place = (token // columns).to(tl.int64) * row_stride + (token % columns).to(tl.int64) * column_stride
    return place[None, :]


@triton.jit(do_not_specialize=["parts", "columns", "heads"])
def _kv_sums(
    qkv,
    out,
    parts,
    tokens,
    columns,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    heads,
    FLAT: tl.constexpr,
    DIM: tl.constexpr,
    PART: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    # Heads before parts: where channels lie side by side, neighbouring programs then read neighbouring memory.
    pairs = tl.num_programs(0) // parts
    part = tl.program_id(0) // pairs
    pair = (tl.program_id(0) % pairs).to(tl.int64)
    dim = tl.arange(0, DIM)
    source = qkv + (pair // heads) * batch_stride + (pair % heads) * 3 * DIM * channel_stride
    keys = source + (DIM + dim).to(tl.int64)[:, None] * channel_stride
    values = source + (2 * DIM + dim).to(tl.int64)[:, None] * channel_stride
    weighted = tl.zeros((DIM, DIM), tl.float32)
    key_sums = tl.zeros((DIM, TOKENS), tl.float32)
    for first in range(part * PART, tl.minimum((part + 1) * PART, tokens), TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = (token < tokens)[None, :]
        place = _place(token, columns, row_stride, column_stride, FLAT)
        k = _relu(tl.load(keys + place, mask=inside, other=0.0))
        v = tl.load(values + place, mask=inside, other=0.0)
        key_sums += k
        weighted = tl.dot(v, tl.trans(k.to(v.dtype)), weighted, input_precision=PRECISION)
    target = out + (pair * parts + part) * ((DIM + 1) * DIM)
    tl.store(target + dim[:, None] * DIM + dim[None, :], weighted)
    tl.store(target + DIM * DIM + dim, tl.sum(key_sums, axis=1))


@triton.jit(do_not_specialize=["columns", "heads"])
def _apply_sums(
    qkv,
    sums,
    out,
    tokens,
    columns,
    batch_stride,
    channel_stride,
    row_stride,
    column_stride,
    heads,
    out_batch,
    out_channel,
    out_token,
    EPSILON: tl.constexpr,
    FLAT: tl.constexpr,
    DIM: tl.constexpr,
    PART: tl.constexpr,
    TOKENS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pairs = tl.num_programs(0) // tl.cdiv(tokens, PART)
    part = tl.program_id(0) // pairs
    pair = (tl.program_id(0) % pairs).to(tl.int64)
    dim = tl.arange(0, DIM)
    channel = dim.to(tl.int64)[:, None]
    queries = qkv + (pair // heads) * batch_stride + (pair % heads) * 3 * DIM * channel_stride
    queries += channel * channel_stride
    results = out + (pair // heads) * out_batch + (pair % heads) * DIM * out_channel + channel * out_channel
    sums += pair * ((DIM + 1) * DIM)
    weighted = tl.load(sums + dim[:, None] * DIM + dim[None, :])
    key_sums = tl.load(sums + DIM * DIM + dim)[:, None]
    for first in range(part * PART, tl.minimum((part + 1) * PART, tokens), TOKENS):
        token = first + tl.arange(0, TOKENS)
        inside = (token < tokens)[None, :]
        place = _place(token, columns, row_stride, column_stride, FLAT)
        q = _relu(tl.load(queries + place, mask=inside, other=0.0))
        weight = tl.sum(q * key_sums, axis=0) + EPSILON
        result = tl.dot(weighted, q, input_precision=PRECISION) / weight[None, :]
        place = token.to(tl.int64)[None, :] * out_token
        tl.store(results + place, result.to(out.dtype.element_ty), mask=inside)
