"""What `Record` measures during a user's own run: error against density for every layer and head, and times."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Level:
    """Measurements at one noise level; all fp64 on the CPU, summed or averaged over the batch and the forwards
    of that step.

    density [L, H, P]: kept fraction of the map for each candidate top_p. error [L, H, P]: squared difference to dense
    attention, summed over sampled rows. norm [L, H]: squared norm of dense attention on those rows.
    """

    sigma: float
    density: Tensor
    error: Tensor
    norm: Tensor


@dataclass(frozen=True)
class Timing:
    """Seconds on this machine at this size; None where the run had no occasion to measure.

    dense_step: a step without sparse calls and without measurements. dense_call: one dense video self-attention call.
    calls: of them in a step. sparse: (density, seconds with planning) of single sparse calls. problem: why no sparse
    call can run fast here, or None. steps: of the run. dense_steps: those of them that the run's budget keeps dense,
    or would.
    """

    dense_step: float | None
    dense_call: float | None
    calls: int
    sparse: tuple[tuple[float, float], ...]
    problem: str | None
    steps: int
    dense_steps: int


@dataclass(frozen=True)
class Recording:
    """model: name of the network's class. layers: numbers of the blocks that were seen, rising [L]. top_p: the
    candidates, rising [P]; 1 is not among them. floor, max_density: the budget's that held for all of them. calls: of
    video self-attention in a forward."""

    pattern: str
    model: str
    layers: tuple[int, ...]
    top_p: tuple[float, ...]
    floor: float
    max_density: float
    calls: int
    levels: tuple[Level, ...]
    timing: Timing

    @property
    def heads(self) -> int:
        return self.levels[0].norm.shape[1]
