"""What is known of a finished run, cell by cell: one layer in one step of the sampler. Numbers only, no tensors."""

from __future__ import annotations

from dataclasses import dataclass

# [layer][step]; None where nothing was measured.
Grid = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Step:
    """One step of the sampler.

    number: its place in the run's schedule, from 1. sigma: noise level of its first forward. forwards: of
    the model, one or more. seconds: they took together. dense: why all of its video self-attention was dense (a
    constant of `reasons`), None where some of it was sparse. observed: whether measurements were made in it.
    """

    number: int
    sigma: float
    forwards: int
    seconds: float
    dense: str | None = None
    observed: bool = False


@dataclass(frozen=True)
class Times:
    """Where the seconds of a run's forwards went.

    planning, kernel: of the sparse calls. dense: dense video self-attention beside them. other: the rest of those
    steps: linear layers, cross-attention, and so on. dense_steps: steps without a sparse call, whole. guard: sampling
    of errors and forwards that were repeated. recording: what Record measured.
    """

    planning: float = 0.0
    kernel: float = 0.0
    dense: float = 0.0
    other: float = 0.0
    dense_steps: float = 0.0
    guard: float = 0.0
    recording: float = 0.0


@dataclass(frozen=True)
class Timeline:
    """steps: those that evaluated the model, in order. density: kept fraction of the map, 1 for a dense call.
    error: relative L2 of the attention output on sampled rows. mass: share of the attention mass that the kept blocks
    hold and their tail stands for, on sampled rows. guard: what the guard found and did, in sentences."""

    steps: tuple[Step, ...] = ()
    density: Grid = ()
    error: Grid = ()
    mass: Grid = ()
    times: Times = Times()
    guard: tuple[str, ...] = ()
