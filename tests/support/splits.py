"""The splits of principal axis trees by their definition, in fp64."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_accel.kernels.axis_tree import ROUNDS, SAMPLES, levels


def nodes_of(leaves: int, level: int) -> Iterator[tuple[int, int, int]]:
    """First leaf, first of the upper half, and end of every node of a level."""
    ends = [i * leaves // (2 << level) for i in range((2 << level) + 1)]
    return zip(ends[:-2:2], ends[1::2], ends[2::2], strict=True)


def exact_axis(members: Tensor, weight: Tensor) -> Tensor:
    """The documented power iteration for the tokens members [n, D]."""
    used = min(len(members), SAMPLES)
    some = members[torch.tensor([i * len(members) // used for i in range(used)], device=members.device)]
    some = some - some.mean(0)
    covariance = some.T @ some
    axis = covariance[covariance.diagonal().argmax()]
    for _ in range(ROUNDS):
        axis = weight @ (covariance @ axis)
        axis = axis / axis.abs().max()
    return axis


def wrong_splits(x: Tensor, weight: Tensor, order: Tensor, size: int, slack: float = 1e-4) -> list[tuple[int, ...]]:
    """(pair, level, first leaf) of every node of kernels.axis_tree.tree_order(x, weight, size) in which a token of the
    lower half lies above one of the upper by more than `slack` of the node's deviation."""
    leaves, depth = levels(x.shape[2], size)
    found = []
    pairs = zip(*(part.flatten(0, 1) for part in (x, weight, order)), strict=True)
    for pair, (rows, row_weight, one) in enumerate(pairs):
        rows, row_weight, one = rows.double(), row_weight.double(), one.long()
        for level in range(depth):
            for begin, middle, end in nodes_of(leaves, level):
                if begin == middle or middle == end:
                    continue
                lower, upper = one[begin * size : middle * size], one[middle * size : end * size]
                # Both halves keep the order that they had.
                node = torch.cat([lower, upper]).sort().values
                axis = exact_axis(rows[node], row_weight)
                above = (rows[lower] @ axis).max() - (rows[upper] @ axis).min()
                if above > slack * (rows[node] @ axis).std():
                    found.append((pair, level, begin))
    return found
