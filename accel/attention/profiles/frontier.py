"""The cheapest mixes of the heads' budgets, layer by layer: from keeping as little as was measured to everything.

What a person measures after a run is the mean, over its sparse calls, of the relative L2 of a call's attention output.
A call is one layer at one noise level, so the error of a layer is here

    mean over levels of sqrt(sum over heads of squared error / sum over heads of squared norm).

A share of a layer's squared error costs the same wherever it comes from; hence a mix is the cheapest for its error
when no head could buy a further drop in squared error for less density than the others: equal marginal gains. All such
mixes of a layer lie on one path: walk every head along the lower convex hull of its curve, and take the steps of all
heads in falling order of their gain. Levels count alike in the gain, each in units of its layer's norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..account.recording import Recording

# Parts of the way from one candidate top_p to the next; in between, curves are straight.
PARTS = 16
# Of the way between two places of the path.
HALVINGS = 30


@dataclass(frozen=True)
class Curves:
    """fp64. top_p [K+1]: rising to 1. density [L, H, K+1]: rising to 1, the mean over levels. error [V, L, H, K+1]:
    falling to 0, squared, at each of V levels as a share of the whole layer's squared norm there."""

    top_p: Tensor
    density: Tensor
    error: Tensor


def curves(recording: Recording) -> Curves:
    """Through the measured candidates and the end point that needs no measurement: top_p 1 keeps everything."""
    errors, densities = [], []
    for level in recording.levels:
        norm = level.norm.sum(1)[:, None, None].clamp(min=torch.finfo(torch.float64).tiny)
        share = torch.cat([level.error / norm, torch.zeros_like(level.error[..., :1])], -1)
        density = torch.cat([level.density, torch.ones_like(level.density[..., :1])], -1)
        # A few sampled rows are noisy: more budget can seem to cost accuracy, or nothing.
        errors.append(share.cummin(-1).values)
        densities.append(density.cummax(-1).values)
    top_p = torch.tensor([*recording.top_p, 1.0], dtype=torch.float64)
    return Curves(_straight(top_p), _straight(torch.stack(densities).mean(0)), _falling(torch.stack(errors)))


@dataclass(frozen=True)
class Frontier:
    """The path of each layer, in S = H * K steps. A position on it is a number from 0 to S, whole or not.

    rank [L, H, K]: place of each head's steps in the path. density [L, S+1]: mean over heads. squared [V, L, S+1]:
    squared error of the layer. error [L, S+1]: its relative L2, the mean over levels. densest [L]: the error where
    every head has the largest candidate top_p.
    """

    curves: Curves
    rank: Tensor
    density: Tensor
    squared: Tensor
    error: Tensor
    densest: Tensor

    @property
    def end(self) -> int:
        return self.density.shape[1] - 1

    @property
    def least(self) -> Tensor:
        """[L]: the error where every head has the smallest candidate top_p, which is where the path begins."""
        return self.error[:, 0]

    def at(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """position [L] -> density and error [L]."""
        squared = _read(self.squared, position.expand(len(self.squared), -1))
        return _read(self.density, position), squared.sqrt().mean(0)

    def position(self, error: float) -> Tensor:
        """The cheapest position [L] of each layer whose error is `error` at most, and no less than that where the
        path does not begin below it."""
        after = (self.error > error).sum(-1)
        before = (after - 1).clamp(min=0)
        a, b = (_take(self.squared, place.expand(len(self.squared), -1)) for place in (before, after))
        low, high = torch.zeros_like(self.least), torch.ones_like(self.least)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            good = torch.lerp(a, b, middle).sqrt().mean(0) <= error
            low, high = torch.where(good, low, middle), torch.where(good, middle, high)
        return torch.where(after > 0, before + high, 0)

    def top_p(self, position: Tensor) -> Tensor:
        """position [L] -> [L, H]"""
        walked = (position[:, None, None] - self.rank).clamp(0, 1).sum(-1)
        return _read(self.curves.top_p.expand(*walked.shape, -1), walked)


def frontier(recording: Recording) -> Frontier:
    curve = curves(recording)
    gain = _gains(curve.density, curve.error.mean(0))
    # Stable: steps of one head that gain the same stay in their order.
    order = gain.flatten(1).argsort(dim=-1, descending=True, stable=True)
    steps = torch.arange(order.shape[1], dtype=torch.float64)
    rank = torch.empty_like(order, dtype=torch.float64).scatter_(1, order, steps.expand(order.shape)).view_as(gain)

    price = curve.density.diff(dim=-1).flatten(1).gather(1, order) / gain.shape[1]
    start = curve.density[..., 0].mean(1, keepdim=True)
    # The last one is 1 whatever rounding says.
    density = torch.cat([start, start + price.cumsum(-1)[:, :-1], torch.ones_like(start)], -1).clamp(max=1)
    drop = -curve.error.diff(dim=-1).flatten(2)
    drop = drop.gather(2, order.expand(drop.shape))
    # Summed from the end: small errors are not the difference of large ones.
    squared = torch.cat([drop.flip(-1).cumsum(-1).flip(-1), torch.zeros_like(drop[..., :1])], -1)
    densest = curve.error[..., -1 - PARTS].sum(2).sqrt().mean(0)
    return Frontier(curve, rank, density, squared, squared.sqrt().mean(0), densest)


def _take(values: Tensor, place: Tensor) -> Tensor:
    """values [..., S+1] at the whole numbers place [...]."""
    return values.gather(-1, place[..., None])[..., 0]


def _read(values: Tensor, position: Tensor) -> Tensor:
    """values [..., S+1] at position [...], straight between neighbours."""
    left = position.floor().clamp(max=values.shape[-1] - 2).long()
    return torch.lerp(_take(values, left), _take(values, left + 1), position - left)


def _parts() -> Tensor:
    return torch.arange(PARTS, dtype=torch.float64) / PARTS


def _straight(values: Tensor) -> Tensor:
    """[..., P] -> [..., (P - 1) * PARTS + 1], in straight lines."""
    a, b = values[..., :-1, None], values[..., 1:, None]
    return torch.cat([torch.lerp(a, b, _parts()).flatten(-2), values[..., -1:]], -1)


def _falling(error: Tensor) -> Tensor:
    """As `_straight`, for squared errors.

    Straight in the logarithm: each further part of the budget takes away a share of what error is left, over several
    powers of ten; a straight line would lie far above the curve. Where nothing is left at the end, the error itself
    falls straight, hence the squared error as a parabola: it is about proportional to the lost mass, 1 - top_p.
    """
    a, b = error[..., :-1, None], error[..., 1:, None]
    ratio = torch.where(b > 0, b / a, 1)
    between = torch.where(b > 0, a * ratio ** _parts(), a * (1 - _parts()).square())
    return torch.cat([between.flatten(-2), error[..., -1:]], -1)


def _gains(density: Tensor, error: Tensor) -> Tensor:
    """The drop in error per density of each step [..., K] along the lower convex hull of each curve [..., K+1]:
    never rising."""
    shape = density.shape
    x, y = density.reshape(-1, shape[-1]), error.reshape(-1, shape[-1])
    corner = _hull(x, y)
    points = torch.arange(shape[-1]).expand_as(corner)
    left = torch.where(corner, points, 0).cummax(-1).values[:, :-1]
    right = torch.where(corner, points, shape[-1]).flip(-1).cummin(-1).values.flip(-1)[:, 1:]
    gain = (y.gather(1, left) - y.gather(1, right)) / (x.gather(1, right) - x.gather(1, left))
    # A step that costs nothing comes first. Rounding must not turn the order of neighbours.
    return gain.nan_to_num(nan=torch.inf, posinf=torch.inf).cummin(-1).values.view(*shape[:-1], -1)


def _hull(x: Tensor, y: Tensor) -> Tensor:
    """Which points are corners of the lower convex hull of the curves x (rising), y [C, K+1]; the ends are.

    Andrew's monotone chain, a point of all curves at a time.
    """
    rows = torch.arange(len(x))
    chain = torch.zeros(x.shape, dtype=torch.long)
    top = torch.zeros(len(x), dtype=torch.long)
    for point in range(1, x.shape[1]):
        while True:
            last, before = chain[rows, top], chain[rows, (top - 1).clamp(min=0)]
            width, drop = x[:, point] - x[rows, before], y[rows, before] - y[:, point]
            bulges = (y[rows, before] - y[rows, last]) * width <= drop * (x[rows, last] - x[rows, before])
            bulges &= top > 0
            if not bulges.any():
                break
            top = top - bulges.long()
        top = top + 1
        chain[rows, top] = point
    used = torch.arange(x.shape[1]) <= top[:, None]
    # Unused places of the chain point at its first corner.
    return torch.zeros(x.shape, dtype=torch.bool).scatter_(1, chain.masked_fill(~used, 0), True)
