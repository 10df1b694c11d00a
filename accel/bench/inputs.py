"""Attention inputs from real video: what a frame looks like decides q, k and v, not a random generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.layout import TokenLayout
from ..headless.clip import FRAMES, read_frames
from .captures import Capture, read, sha256
from .drawn import drawn_frames

# Wan at 720p and 81 frames: 21 x 45 x 80 tokens. Other lengths keep these proportions.
FULL_GRID = (21, 45, 80)
PATCH = 16
FEATURES = 512
ROPE_BASE = 10_000.0
# Query and key length after their norm: trained models learn norm weights above one, and with them sharp maps.
QUERY_KEY_NORM = 1.6


class Inputs(NamedTuple):
    """q, k, v: [1, H, N, D], N = layout.total. sha256: of the three tensors' bytes. source: where they come from."""

    q: Tensor
    k: Tensor
    v: Tensor
    layout: TokenLayout
    sha256: str
    source: str


def captured_inputs(path: Path) -> list[Inputs]:
    """Every call in a file of captures (captures.py). Raises ValueError when it is something else."""
    captures, provenance = read(path)
    return [
        Inputs(
            *capture[:3],
            capture.layout,
            capture.sha256(),
            f"{_model(provenance)} block {capture.block} sigma {capture.sigma}",
        )
        for capture in captures
    ]


def stacked_inputs(paths: Sequence[Path], heads: int) -> list[Inputs]:
    """One call of `heads` heads for each layout in the capture files: the heads of its calls side by side, in their
    order, as far as they are needed. So a small model's captures make a call of a large one's size.

    Raises ValueError when a file is something else, or when a layout has fewer heads.
    """
    groups: dict[tuple[TokenLayout, int], list[tuple[Capture, str]]] = {}
    for path in paths:
        captures, provenance = read(path)
        for capture in captures:
            groups.setdefault((capture.layout, capture.q.shape[-1]), []).append((capture, _model(provenance)))
    return [_stacked(layout, calls, heads) for (layout, _), calls in groups.items()]


def _stacked(layout: TokenLayout, calls: list[tuple[Capture, str]], heads: int) -> Inputs:
    available = sum(capture.q.shape[1] for capture, _ in calls)
    if available < heads:
        grid = "x".join(map(str, layout.grid))
        raise ValueError(f"expected captures that have {heads} heads of {grid} tokens together, found {available}")
    q, k, v = (
        torch.cat(parts, 1)[:, :heads].contiguous()
        for parts in zip(*(capture[:3] for capture, _ in calls), strict=True)
    )
    models = ", ".join(dict.fromkeys(model for _, model in calls))
    return Inputs(q, k, v, layout, sha256(q, k, v), f"{heads} heads of {models}")


def _model(provenance: dict[str, Any]) -> str:
    return provenance.get("model", {}).get("file", "a model")


def grid_for(tokens: int) -> tuple[int, int, int]:
    """The (T, H, W) of Wan's proportions whose product is near `tokens`; every token has pixels of its own.

    Raises ValueError when the clip has too few frames for that.
    """
    side = (tokens / math.prod(FULL_GRID)) ** (1 / 3)
    t, h, w = (max(1, round(side * size)) for size in FULL_GRID)
    if t > FRAMES:
        raise ValueError(f"tokens: {tokens} would need {t} frames, the clip has {FRAMES}")
    return t, h, w


def video_inputs(clip: Path, tokens: int, heads: int, head_dim: int, seed: int = 0) -> Inputs:
    """About `tokens` tokens of the clip: 16 x 16 pixel patches of frames spread over it, standardised, sent
    through a fixed random layer and three fixed random projections, with a norm and rotary positions on q and
    k as a video transformer has them.

    Queries and keys share half of their projection: like attends to like, as in trained models.
    """
    grid = grid_for(tokens)
    frames = read_frames(clip, [index * FRAMES // grid[0] for index in range(grid[0])], *_pixels(grid))
    return _project(frames, grid, heads, head_dim, seed, "projections of Big Buck Bunny")


def drawn_inputs(grid: tuple[int, int, int], heads: int, head_dim: int, seed: int = 0) -> Inputs:
    """As `video_inputs`, of a drawn clip: any grid, and no video is needed."""
    return _project(drawn_frames(grid[0], *_pixels(grid)), grid, heads, head_dim, seed, "projections of a drawn clip")


def _pixels(grid: tuple[int, int, int]) -> tuple[int, int]:
    return grid[1] * PATCH, grid[2] * PATCH


def _project(frames: Tensor, grid: tuple[int, int, int], heads: int, head_dim: int, seed: int, source: str) -> Inputs:
    tokens = math.prod(grid)
    patches = torch.nn.functional.pixel_unshuffle(frames, PATCH).permute(0, 2, 3, 1).reshape(tokens, -1)
    patches = (patches - patches.mean(0)) / patches.std(0)

    generator = torch.Generator().manual_seed(seed)

    def project(x: Tensor, width: int) -> Tensor:
        weight = torch.randn(x.shape[-1], width, generator=generator)
        return x @ weight * x.shape[-1] ** -0.5

    features = torch.nn.functional.gelu(project(patches, FEATURES))
    shared, q, k, v = (project(features, heads * head_dim) for _ in range(4))
    q, k, v = (x.view(tokens, heads, head_dim).transpose(0, 1)[None] for x in (q + shared, k + shared, v))
    angles = _angles(grid, head_dim)
    q, k = (_rotate(_normalise(x), angles).contiguous() for x in (q, k))
    v = v.contiguous()
    return Inputs(q, k, v, TokenLayout(grid), sha256(q, k, v), source)


def _normalise(x: Tensor) -> Tensor:
    return x * x.square().mean(-1, keepdim=True).rsqrt() * QUERY_KEY_NORM


def _angles(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """Rotary angles [N, head_dim / 2] of a raster: the pairs are split over time, height and width as in Wan."""
    pairs = head_dim // 2
    spatial = pairs // 3
    parts = []
    for axis, size, count in zip(range(3), grid, (pairs - 2 * spatial, spatial, spatial), strict=True):
        frequencies = ROPE_BASE ** (-torch.arange(count) / count)
        shape = [1, 1, 1, count]
        shape[axis] = size
        parts.append((torch.arange(size)[:, None] * frequencies).view(shape).expand(*grid, count))
    return torch.cat(parts, dim=-1).reshape(-1, pairs)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
