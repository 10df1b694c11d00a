"""Triton kernel of row_attention.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import registry
from .block_sparse_attention import _add_keys

# Keys of one program. At 16 rows the results of the parts are a sixty-fourth of the keys and values that were read;
# a short clip of a small model (32,760 tokens, 12 heads) still makes 384 programs.
PART = 1024


class Config(NamedTuple):
    """Keys of one tile, warps of a program, pipeline stages of the key loop."""

    keys: int
    warps: int
    stages: int


# Chosen by what compiles without spills for up to 64 rows. Nothing was timed.
CONFIGS = {
    "sm_80": Config(32, 4, 3),
    "gfx942": Config(32, 4, 1),
    "gfx1100": Config(16, 4, 1),
    "gfx1201": Config(32, 4, 1),
    "interpreter": Config(64, 4, 1),
}


def launch(queries: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See row_attention.row_attention."""
    batch, heads, rows, dim = queries.shape
    parts = triton.cdiv(k.shape[2], PART)
    config = registry.nearest(CONFIGS, registry.architecture(k.device))
    out = queries.new_empty(batch, heads, parts, rows, dim, dtype=torch.float32)
    lse = queries.new_empty(batch, heads, parts, rows, dtype=torch.float32)
    with torch.cuda.device_of(k):
        _attend_part[(parts, batch * heads)](
            queries.contiguous(),
            k,
            v,
            out,
            lse,
            *k.stride()[:3],
            *v.stride()[:3],
            heads,
            rows,
            k.shape[2],
            scale * math.log2(math.e),
            DIM=dim,
            ROWS=max(16, triton.next_power_of_2(rows)),
            KEYS=config.keys,
            PART=PART,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out.mul_(lse.softmax(2)[..., None]).sum(2), lse.logsumexp(2)


@triton.jit(do_not_specialize=["heads", "rows", "length", "scale_log2"])
def _attend_part(
    queries,
    k,
    v,
    out,
    lse,
    k_batch,
    k_head,
    k_token,
    v_batch,
    v_head,
    v_token,
    heads,
    rows,
    length,
    scale_log2,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PART: tl.constexpr,
):
    part = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    k += (pair // heads) * k_batch + (pair % heads) * k_head
    v += (pair // heads) * v_batch + (pair % heads) * v_head
    dim = tl.arange(0, DIM)
    row = tl.arange(0, ROWS)
    inside = row < rows
    query = tl.load(queries + (pair * rows + row)[:, None] * DIM + dim[None, :], mask=inside[:, None], other=0.0)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, DIM), tl.float32)
    for first in range(part * PART, tl.minimum((part + 1) * PART, length), KEYS):
        token = first + tl.arange(0, KEYS)
        real = token < length
        place = token.to(tl.int64)[:, None]
        keys = tl.load(k + place * k_token + dim[None, :], mask=real[:, None], other=0.0)
        values = tl.load(v + place * v_token + dim[None, :], mask=real[:, None], other=0.0)
        logits = tl.where(real[None, :], tl.dot(query, tl.trans(keys)) * scale_log2, float("-inf"))
        top, total, acc = _add_keys(top, total, acc, logits, values, 0)

    target = (pair * tl.num_programs(0) + part) * rows + row
    tl.store(out + target[:, None] * DIM + dim[None, :], acc / total[:, None], mask=inside[:, None])
    tl.store(lse + target, (top + tl.log2(total)) * 0.6931471805599453, mask=inside)
