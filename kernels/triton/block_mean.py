"""Triton kernel of block_mean.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 64


def launch(x: Tensor, tokens: Tensor, offsets: Tensor, index: Tensor, empty: Tensor) -> Tensor:
    """See block_mean.block_mean."""
    batch, heads, _, dim = x.shape
    blocks = offsets.shape[1] - 1
    out = x.new_empty(empty.shape)
    with torch.cuda.device_of(x):
        _mean[(blocks, batch * heads)](
            x,
            tokens.contiguous(),
            offsets.contiguous(),
            index.contiguous(),
            empty.contiguous(),
            out,
            *x.stride()[:3],
            heads,
            tokens.shape[1],
            blocks,
            DIM=dim,
            ROWS=ROWS,
        )
    return out


@triton.jit(do_not_specialize=["heads", "length", "blocks"])
def _mean(
    x,
    tokens,
    offsets,
    index,
    empty,
    out,
    x_batch,
    x_head,
    x_token,
    heads,
    length,
    blocks,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
):
    block = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    dim = tl.arange(0, DIM)
    source = x + (pair // heads) * x_batch + (pair % heads) * x_head
    order = tl.load(index + pair).to(tl.int64)
    bounds = offsets + order * (blocks + 1) + block
    start = tl.load(bounds)
    end = tl.load(bounds + 1)
    total = tl.zeros((ROWS, DIM), tl.float32)
    for first in range(start, end, ROWS):
        position = first + tl.arange(0, ROWS)
        member = position < end
        token = tl.load(tokens + order * length + position, mask=member, other=0).to(tl.int64)
        total += tl.load(source + token[:, None] * x_token + dim[None, :], mask=member[:, None], other=0.0).to(
            tl.float32
        )
    target = (pair * blocks + block) * DIM + dim
    mean = tl.sum(total, axis=0) / tl.maximum(end - start, 1).to(tl.float32)
    instead = tl.load(empty + target).to(tl.float32)
    tl.store(out + target, tl.where(end > start, mean, instead).to(out.dtype.element_ty))
