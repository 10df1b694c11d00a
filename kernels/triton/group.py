"""Triton kernels of group.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTED = 512  # labels counted in one step
PLACED = 64  # labels placed in one step, each compared with all others


def launch(labels: Tensor, count: int, *, segments: int) -> tuple[Tensor, Tensor]:
    """See group.group. segments: parts of the sequence, a power of two, that are counted apart."""
    batch, heads, length = labels.shape
    labels = labels.contiguous()
    order = torch.empty_like(labels)
    segment = triton.cdiv(length, segments)
    counts = labels.new_empty(batch, heads, count, segments)
    # Histograms have a power of two of bins; the last of more than `count` takes what is no label.
    bins = triton.next_power_of_2(count + 1)
    warps = 4 if bins <= 1024 else 8
    with torch.cuda.device_of(labels):
        _count[(segments, batch * heads)](
            labels, counts, length, segment, count, SEGMENTS=segments, BINS=bins, STEP=COUNTED, num_warps=warps
        )
        ends = counts.flatten(2).cumsum(-1, dtype=torch.int32)
        starts = ends - counts.flatten(2)
        _place[(segments, batch * heads)](
            labels, starts, order, length, segment, count, SEGMENTS=segments, BINS=bins, STEP=PLACED, num_warps=warps
        )
    return order, torch.cat([starts[..., ::segments], ends[..., -1:]], dim=-1)


@triton.jit(do_not_specialize=["length", "segment", "count"])
def _count(labels, counts, length, segment, count, SEGMENTS: tl.constexpr, BINS: tl.constexpr, STEP: tl.constexpr):
    part = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    end = tl.minimum((part + 1) * segment, length)
    total = tl.zeros((BINS,), tl.int32)
    for first in range(part * segment, end, STEP):
        token = first + tl.arange(0, STEP)
        label = tl.load(labels + pair * length + token, mask=token < end, other=count)
        total += tl.histogram(label, BINS)
    label = tl.arange(0, BINS)
    tl.store(counts + (pair * count + label) * SEGMENTS + part, total, mask=label < count)


@triton.jit(do_not_specialize=["length", "segment", "count"])
def _place(
    labels, starts, order, length, segment, count, SEGMENTS: tl.constexpr, BINS: tl.constexpr, STEP: tl.constexpr
):
    part = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    end = tl.minimum((part + 1) * segment, length)
    place = tl.arange(0, BINS)
    # Where the next token of every label goes.
    position = tl.load(starts + (pair * count + place) * SEGMENTS + part, mask=place < count, other=0)
    lane = tl.arange(0, STEP)
    for first in range(part * segment, end, STEP):
        token = first + lane
        label = tl.load(labels + pair * length + token, mask=token < end, other=count)
        before = (label[:, None] == tl.reshape(label, (1, STEP))) & (lane[None, :] < lane[:, None])
        target = tl.gather(position, label, axis=0) + tl.sum(before.to(tl.int32), axis=1)
        tl.store(order + pair * length + target, token, mask=token < end)
        position += tl.histogram(label, BINS)
