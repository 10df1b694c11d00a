"""Triton kernels of axis_tree.py."""

# ruff: noqa: N803 - constexpr arguments are written in capitals, as Triton code does

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import registry

# Of a program that finds an axis: its matrices, [D, D] in fp32, stay in registers. On sm_100 with fewer than 16 the
# products are tcgen05's, and Triton 3.6 fails where a vector made of those is reduced to a number.
WARPS = {"sm_80": 8, "sm_100": 16, "sm_120": 8, "gfx942": 8, "gfx1100": 16, "gfx1201": 16, "interpreter": 4}
ROWS = 64  # tokens multiplied at once
FEW, MANY = 256, 1024  # scores looked at at once in small and in large nodes
DIGIT = 8  # bits of a score that one pass decides


def launch(x: Tensor, weight: Tensor, size: int, leaves: int, depth: int, *, samples: int, rounds: int) -> Tensor:
    """See axis_tree.tree_order and axis_tree.levels. samples: tokens of a node, at most, that its axis is found from;
    rounds: of power iteration. Three kernels a level: the nodes' axes, the tokens' places on them, the halves."""
    batch, heads, tokens, dim = x.shape
    pairs = batch * heads
    order = torch.arange(tokens, device=x.device, dtype=torch.int32).expand(pairs, tokens).contiguous()
    other = torch.empty_like(order)
    scores = x.new_empty(pairs, tokens, dtype=torch.float32)
    axes = x.new_empty(pairs, max(1, 1 << depth >> 1), dim, dtype=torch.float32)
    weight = weight.contiguous()
    where = (*x.stride()[:3], heads, tokens, leaves)
    warps = registry.nearest(WARPS, registry.architecture(x.device))
    with torch.cuda.device_of(x):
        for level in range(depth):
            nodes = 1 << level
            _axes[(nodes, pairs)](
                x,
                order,
                weight,
                axes,
                *where,
                level,
                size,
                DIM=dim,
                SAMPLES=samples,
                ROWS=ROWS,
                ROUNDS=rounds,
                num_warps=warps,
            )
            _scores[(leaves, pairs)](x, order, axes, scores, *where, level, SIZE=size, DIM=dim)
            step = FEW if (leaves * size >> level) <= 2 * FEW else MANY
            _halve[(nodes, pairs)](scores, order, other, tokens, leaves, level, size, STEP=step, DIGIT=DIGIT)
            order, other = other, order
    return order.view(batch, heads, tokens)


@triton.jit
def _bounds(node, level, leaves, tokens, size):
    """First position, first of the upper half, and end of a node."""
    begin = (node * leaves >> level) * size
    middle = tl.minimum(((2 * node + 1) * leaves >> (level + 1)) * size, tokens)
    end = tl.minimum(((node + 1) * leaves >> level) * size, tokens)
    return begin, middle, end


@triton.jit(do_not_specialize=["heads", "tokens", "leaves", "level", "size"])
def _axes(
    x,
    order,
    weight,
    axes,
    x_batch,
    x_head,
    x_token,
    heads,
    tokens,
    leaves,
    level,
    size,
    DIM: tl.constexpr,
    SAMPLES: tl.constexpr,
    ROWS: tl.constexpr,
    ROUNDS: tl.constexpr,
):
    node = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    begin, middle, end = _bounds(node, level, leaves, tokens, size)
    dim = tl.arange(0, DIM)
    axes += (pair * tl.num_programs(0) + node) * DIM
    if (middle == begin) | (middle == end):  # nothing to split
        tl.store(axes + dim, tl.zeros((DIM,), tl.float32))
        return
    count = end - begin
    used = tl.minimum(count, SAMPLES)
    source = x + (pair // heads) * x_batch + (pair % heads) * x_head
    total = tl.zeros((DIM,), tl.float32)
    products = tl.zeros((DIM, DIM), tl.float32)
    for first in range(0, used, ROWS):
        nth = first + tl.arange(0, ROWS)
        inside = nth < used
        position = begin + (nth.to(tl.int64) * count // used).to(tl.int32)
        token = tl.load(order + pair * tokens + position, mask=inside, other=0).to(tl.int64)
        rows = tl.load(source + token[:, None] * x_token + dim[None, :], mask=inside[:, None], other=0.0)
        total += tl.sum(rows.to(tl.float32), axis=0)
        products = tl.dot(tl.trans(rows), rows, products)
    # With the mean taken off.
    other = tl.sum(tl.where(dim[:, None] == dim[None, :], total[None, :], 0.0), axis=1)
    products -= other[:, None] * (total / used)[None, :]

    diagonal = tl.sum(tl.where(dim[:, None] == dim[None, :], products, 0.0), axis=0)
    # Which index an argmax of nothing but NaN gives is nowhere said, and the interpreter may raise.
    widest = tl.argmax(tl.where(diagonal == diagonal, diagonal, float("-inf")), axis=0)
    axis = tl.sum(tl.where(dim[:, None] == widest, products, 0.0), axis=0)
    weights = tl.load(weight + pair * DIM * DIM + dim[:, None] * DIM + dim[None, :])
    for _ in range(ROUNDS):
        # Both matrices are symmetric: rows and columns are taken in turns, so that no vector changes its layout.
        moved = tl.sum(products * axis[None, :], axis=1)
        axis = tl.sum(weights * moved[:, None], axis=0)
        length = tl.max(tl.abs(axis), axis=0)
        axis = axis / tl.where(length > 0, length, 1.0)
    tl.store(axes + dim, axis)


@triton.jit(do_not_specialize=["heads", "tokens", "leaves", "level"])
def _scores(
    x,
    order,
    axes,
    scores,
    x_batch,
    x_head,
    x_token,
    heads,
    tokens,
    leaves,
    level,
    SIZE: tl.constexpr,
    DIM: tl.constexpr,
):
    leaf = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    node = (((leaf + 1) << level) - 1) // leaves
    dim = tl.arange(0, DIM)
    position = leaf * SIZE + tl.arange(0, SIZE)
    inside = position < tokens
    token = tl.load(order + pair * tokens + position, mask=inside, other=0).to(tl.int64)
    source = x + (pair // heads) * x_batch + (pair % heads) * x_head
    rows = tl.load(source + token[:, None] * x_token + dim[None, :], mask=inside[:, None], other=0.0)
    axis = tl.load(axes + ((pair << level) + node) * DIM + dim)
    tl.store(scores + pair * tokens + position, tl.sum(rows.to(tl.float32) * axis[None, :], axis=1), mask=inside)


@triton.jit
def _sortable(score):
    """Integers that rise from 0 with the scores; the same for 0 and -0."""
    bits = (score + 0.0).to(tl.int32, bitcast=True)
    return bits.to(tl.uint32, bitcast=True) ^ ((bits >> 31).to(tl.uint32, bitcast=True) | 0x80000000)


@triton.jit(do_not_specialize=["tokens", "leaves", "level", "size"])
def _halve(
    scores,
    order,
    halved,
    tokens,
    leaves,
    level,
    size,
    STEP: tl.constexpr,
    DIGIT: tl.constexpr,
):
    node = tl.program_id(0)
    pair = tl.program_id(1).to(tl.int64)
    begin, middle, end = _bounds(node, level, leaves, tokens, size)
    scores += pair * tokens
    order += pair * tokens
    halved += pair * tokens
    lane = tl.arange(0, STEP)
    BINS: tl.constexpr = 1 << DIGIT
    digit = tl.arange(0, 2 * BINS)  # the upper half takes what is none

    # The score at the border, and how many of those equal to it stay below: found digit by digit, from the highest.
    border = tl.full((), 0, tl.uint32)
    below = middle - begin
    shift = tl.full((), 32, tl.uint32)
    for _ in range(0, 32 // DIGIT):
        shift -= DIGIT
        counts = tl.zeros((2 * BINS,), tl.int32)
        for first in range(begin, end, STEP):
            position = first + lane
            digits = _sortable(tl.load(scores + position, mask=position < end, other=0.0)) >> shift
            alike = (position < end) & ((digits >> DIGIT) == border)
            counts += tl.histogram(tl.where(alike, (digits & (BINS - 1)).to(tl.int32), BINS), 2 * BINS)
        ends = tl.cumsum(counts, axis=0)
        chosen = tl.sum(((ends < below) & (digit < BINS)).to(tl.int32), axis=0)
        below -= tl.sum(tl.where(digit < chosen, counts, 0), axis=0)
        border = (border << DIGIT) | chosen.to(tl.uint32)

    lower = begin
    upper = middle
    equal = 0
    for first in range(begin, end, STEP):
        position = first + lane
        inside = position < end
        key = _sortable(tl.load(scores + position, mask=inside, other=0.0))
        token = tl.load(order + position, mask=inside, other=0)
        same = (inside & (key == border)).to(tl.int32)
        rank = equal + tl.cumsum(same, axis=0)
        left = (inside & ((key < border) | ((same > 0) & (rank <= below)))).to(tl.int32)
        right = inside.to(tl.int32) - left
        place = tl.where(left > 0, lower + tl.cumsum(left, axis=0), upper + tl.cumsum(right, axis=0)) - 1
        tl.store(halved + place, token, mask=inside)
        lower += tl.sum(left, axis=0)
        upper += tl.sum(right, axis=0)
        equal += tl.sum(same, axis=0)
