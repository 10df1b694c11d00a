"""Tokens in an order in which every few consecutive ones are alike: a principal axis tree of many short problems at
once, one per (batch, head).

A node's tokens are split in two along the axis on which they differ most (Sproull, "Refinements to nearest-neighbor
searching in k-dimensional trees", Algorithmica 6, 1991), down to leaves of a given size. Unlike the clusters of k-means
all leaves are full, so that tiles of the attention kernel are, too. Differences are weighed: what nobody asks for does
not count.
"""

from itertools import pairwise

import torch
from torch import Tensor

from . import registry, workers

SAMPLES = 512  # tokens of a node, at most, that its axis is found from
TORCH_SAMPLES = 64  # of the backend torch: its trees err no more
ROUNDS = 3  # of power iteration


def tree_order(x: Tensor, weight: Tensor, size: int, *, backend: str) -> Tensor:
    """The leaves of the tree one after the other: int32 [B, H, N], position -> token; each `size` positions are a leaf,
    the last one may be short.

    x: [B, H, N, D], any strides with D dense; weight: fp32 [B, H, D, D], symmetric: a difference d of two tokens counts
    as much as d . weight d. size: a power of two.

    Node i of level l has the leaves i L >> l to (i + 1) L >> l of all L: sizes in a level differ by one leaf at most.
    Of equal tokens the first stay first, and equal inputs give equal results.
    """
    return {"triton": _order_op, "torch": _order_torch, "reference": _order_reference}[backend](x, weight, size)


def levels(tokens: int, size: int) -> tuple[int, int]:
    """Leaves of a tree, and how often its root must be halved until every node is a leaf at most."""
    leaves = -(-tokens // size)
    return leaves, tree_depth(leaves)


def tree_depth(leaves: int) -> int:
    """How often a tree of so many leaves is halved."""
    return (leaves - 1).bit_length()


def _order_reference(x: Tensor, weight: Tensor, size: int) -> Tensor:
    batch, heads, tokens, _ = x.shape
    leaves, depth = levels(tokens, size)
    order = torch.arange(tokens, device=x.device).expand(batch, heads, tokens)
    for level in range(depth):
        parts: list[Tensor] = []
        for node in range(1 << level):
            begin, middle, end = ((k * leaves >> level + 1) * size for k in range(2 * node, 2 * node + 3))
            parts += _split(x, order[:, :, begin:end], weight, min(middle, tokens) - begin)
        order = torch.cat(parts, dim=2)
    return order.int()


def _split(x: Tensor, members: Tensor, weight: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """The `left` tokens of members [B, H, n] that lie lowest on their axis, and the others."""
    rows = x.gather(2, members[..., None].expand(-1, -1, -1, x.shape[3])).float()
    ranks = (rows * principal_axis(rows, weight)[:, :, None]).sum(-1).argsort(dim=2, stable=True).argsort(dim=2)
    # Both halves keep the order that they had.
    places = (ranks >= left).to(torch.uint8).argsort(dim=2, stable=True)
    halves = members.gather(2, places)
    return halves[:, :, :left], halves[:, :, left:]


def principal_axis(rows: Tensor, weight: Tensor) -> Tensor:
    """The axis fp32 [B, H, D], of any length, along which the tokens rows [B, H, n, D], fp32, differ most by the
    weight: of at most SAMPLES of them, spread evenly, by ROUNDS of power iteration; zeros where they do not differ."""
    count = rows.shape[2]
    used = min(count, SAMPLES)
    rows = rows[:, :, torch.arange(used, device=rows.device) * count // used]
    rows = rows - rows.mean(2, keepdim=True)
    differences = rows.mT @ rows
    widest = differences.diagonal(dim1=2, dim2=3).argmax(-1)
    axis = differences.gather(3, widest[:, :, None, None].expand(*differences.shape[:3], 1))
    for _ in range(ROUNDS):
        axis = weight @ (differences @ axis)
        length = axis.abs().amax(2, keepdim=True)
        axis = axis / length.where(length > 0, 1)
    return axis.squeeze(-1)


def _order_torch(x: Tensor, weight: Tensor, size: int) -> Tensor:
    """The reference without its loop over nodes; on the CPU every tree is a task of its own."""
    if x.device.type != "cpu":
        return _tree(x, weight, size)
    out = x.new_empty(x.shape[:3], dtype=torch.int32)

    def task(b: int, h: int) -> None:
        out[b, h] = _tree(x[b, h], weight[b, h], size)

    workers.share_places(task, range(x.shape[0]), range(x.shape[1]))
    return out


def _tree(x: Tensor, weight: Tensor, size: int) -> Tensor:
    """tree_order of one head: x [N, D], weight [D, D]. Node by node the axis is that of fewer tokens."""
    tokens, device = len(x), x.device
    leaves, depth = levels(tokens, size)
    transposed = x.to(workers.guessing_dtype(x)).T
    order = torch.arange(tokens, device=device)
    for level in range(depth):
        bounds = [(k * leaves >> level + 1) * size for k in range(2 * (1 << level) + 1)]
        bounds[-1] = tokens
        widest = max(end - begin for begin, end in pairwise(bounds[::2]))
        begin, middle, end = (torch.tensor(bounds, device=device)[k:][: 2 << level : 2, None] for k in range(3))
        place = torch.arange(widest, device=device)
        inside = place < end - begin
        used = (end - begin).clamp(max=TORCH_SAMPLES)
        sample = torch.arange(TORCH_SAMPLES, device=device)
        rows = x[order[begin + torch.minimum(sample, used - 1) * (end - begin) // used]].float()
        axes = _axes(rows, sample < used, weight).to(transposed.dtype)
        # All axes for all tokens: one product costs less than putting the tokens in order.
        members = order[(begin + place).clamp(max=tokens - 1)]
        along = (axes @ transposed).float().gather(1, members).masked_fill_(~inside, torch.inf)
        lowest = torch.zeros_like(inside).scatter_(1, along.argsort(dim=1, stable=True), place < middle - begin)
        # Both halves keep the order that they had.
        before = lowest.cumsum(1)
        target = torch.where(lowest, begin + before - 1, middle + place - before).masked_fill_(~inside, tokens)
        order = order.new_empty(tokens + 1).scatter_(0, target.flatten(), members.flatten())[:tokens]
    return order.int()


def _axes(rows: Tensor, inside: Tensor, weight: Tensor) -> Tensor:
    """The principal axes [nodes, D] of rows [nodes, n, D], of which those `inside` [nodes, n] count (principal_axis).
    No row meets all others: few rows are passed over sooner than a matrix of D x D."""
    inside = inside[..., None]
    rows = (rows - (rows * inside).sum(1, keepdim=True) / inside.sum(1, keepdim=True)) * inside
    widest = rows.square().sum(1).argmax(-1)[:, None, None].expand(*rows.shape[:2], 1)
    axis = (rows * rows.gather(2, widest)).sum(1)
    for _ in range(ROUNDS):
        along = (rows * axis[:, None]).sum(2, keepdim=True)
        axis = (rows * along).sum(1) @ weight
        length = axis.abs().amax(1, keepdim=True)
        axis = axis / length.where(length > 0, 1)
    return axis


def _order_fake(x: Tensor, weight: Tensor, size: int) -> Tensor:
    return x.new_empty(x.shape[:3], dtype=torch.int32)


def _order_triton(x: Tensor, weight: Tensor, size: int) -> Tensor:
    from .triton.axis_tree import launch

    leaves, depth = levels(x.shape[2], size)
    return launch(x, weight, size, leaves, depth, samples=SAMPLES, rounds=ROUNDS)


_order_op = registry.custom_op("tree_order", _order_triton, _order_fake)


def trial(device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """The smallest call (registry.trial_problem)."""
    x = torch.zeros(1, 1, 128, head_dim, dtype=dtype, device=device)
    tree_order(x, x.new_zeros(1, 1, head_dim, head_dim, dtype=torch.float32), 64, backend="triton")
