"""Recordings of known curves."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dit_accel.accel.attention.account.recording import Level, Recording, Timing

TOP_P = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
# Every layer takes 50 ms of dense attention a step, or 5 ms and 50 ms for what is kept.
TIMING = Timing(
    dense_step=0.5, dense_call=0.05, calls=4, sparse=((0.2, 0.015), (0.6, 0.035)), problem=None, steps=20, dense_steps=4
)
NO_TIMING = Timing(None, None, 4, (), None, 20, 4)


def make_recording(
    levels: Sequence[tuple[Tensor, Tensor, Tensor]], top_p: Sequence[float], timing: Timing = TIMING
) -> Recording:
    """levels: density and squared error [L, H, P] and squared norm [L, H] of each."""
    sigmas = torch.linspace(0.9, 0.1, len(levels)).tolist()
    measured = tuple(
        Level(sigma, *(values.double() for values in level)) for sigma, level in zip(sigmas, levels, strict=True)
    )
    layers = tuple(range(len(levels[0][2])))
    return Recording("svg2", "WanModel", layers, tuple(top_p), 0.05, 1.0, len(layers), measured, timing)


def falling(
    start: Tensor, rate: Tensor, top_p: Sequence[float] = TOP_P, power: float | Tensor = 1.0, timing: Timing = TIMING
) -> Recording:
    """Squared errors start * exp(-rate * top_p) and densities top_p ** power; start, rate [V, L, H]; norms are 1."""
    levels = []
    for level_start, level_rate in zip(start.double(), rate.double(), strict=True):
        p = torch.tensor(top_p, dtype=torch.float64).expand(*level_start.shape, -1)
        error = level_start[..., None] * torch.exp(-level_rate[..., None] * p)
        levels.append((p**power, error, torch.ones_like(level_start)))
    return make_recording(levels, top_p, timing)


def random_recording(
    seed: int, layers: int = 3, heads: int = 4, levels: int = 3, noise: float = 0.3, timing: Timing = TIMING
) -> Recording:
    """Falling errors of very different size and rate, measured with noise; norms differ by head and level."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    p = torch.tensor(TOP_P, dtype=torch.float64)
    measured = []
    for _ in range(levels):
        density = p ** (1 + 2 * draw(layers, heads, 1))
        norm = 10 ** (2 * draw(layers, heads))
        shape = torch.exp(-(2 + 10 * draw(layers, heads, 1)) * p)
        jitter = torch.exp(noise * torch.randn(layers, heads, len(TOP_P), generator=generator, dtype=torch.float64))
        measured.append((density, 0.5 * draw(layers, heads, 1) * norm[..., None] * shape * jitter, norm))
    return make_recording(measured, TOP_P, timing)


def mapped(recording: Recording, change: Callable[[Level], Level]) -> Recording:
    """The recording with every level changed."""
    return replace(recording, levels=tuple(map(change, recording.levels)))
