"""Where in the noise schedule a run may be sparse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .budget import FEW_STEP, Budget

PercentToSigma = Callable[[float], float]


# Schedulers round sigmas to a table of 1000: a step that lies on a boundary by intention must not miss it.
_ROUNDING = 2e-3
# A step's sigma, relative, after samplers that go through its logarithm or through half precision.
_SAME = 1e-3


@dataclass(frozen=True)
class SigmaWindow:
    """Sparse attention is allowed while low < sigma <= high."""

    high: float = math.inf
    low: float = -math.inf

    @classmethod
    def of(cls, budget: Budget, percent_to_sigma: PercentToSigma, sigmas: Sequence[float] = ()) -> SigmaWindow:
        """The window that dense_first and dense_last leave; percent_to_sigma falls from percent 0 to 1.

        With evenly spaced steps, dense_first = 0.2 keeps exactly the first fifth of them dense. few_step counts steps
        instead, however they are spaced: the first of the run's `sigmas` is dense where it begins in the first tenth
        of the schedule; a run that goes on from there, as the second of two experts does, has no dense step.
        """

        def sigma(percent: float) -> float:
            return percent_to_sigma(max(0.0, percent - _ROUNDING))

        if budget.preset == FEW_STEP and len(sigmas) > 1:
            begins = sigmas[0] > sigma(budget.dense_first)
            return cls(high=sigmas[1] * (1 + _SAME) if begins else math.inf)
        if budget.dense_first == 1:
            return cls(high=-math.inf)
        return cls(
            high=sigma(budget.dense_first) if budget.dense_first > 0 else math.inf,
            low=sigma(1 - budget.dense_last) if budget.dense_last > 0 else -math.inf,
        )

    def __contains__(self, sigma: float) -> bool:
        return self.low < sigma <= self.high


def percent_of(sigma: float, percent_to_sigma: PercentToSigma) -> float:
    """Inverse of percent_to_sigma by bisection, 0..1."""
    low, high = 0.0, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        low, high = (middle, high) if percent_to_sigma(middle) > sigma else (low, middle)
    return (low + high) / 2


def step_of(sigma: float, sigmas: Sequence[float]) -> int:
    """The step, from 0, of the decreasing `sigmas` (the last is the end) that a forward at `sigma` belongs to;
    samplers evaluate between two of them too."""
    starts = sigmas[:-1]
    nearest = min(range(len(starts)), key=lambda step: abs(starts[step] - sigma), default=0)
    if starts and abs(starts[nearest] - sigma) <= _SAME * sigma:
        return nearest
    return max(0, sum(start > sigma for start in starts) - 1)


def full_steps(sigmas: Sequence[float], percent_to_sigma: PercentToSigma) -> int:
    """Steps of the whole schedule of which the decreasing `sigmas` (the last is the end) may be a part.

    A sampler that runs steps 0..10 of 20, or the second of two experts, sees a slice; the budget's choice
    must not depend on that.
    """
    steps = len(sigmas) - 1
    covered = percent_of(sigmas[-1], percent_to_sigma) - percent_of(sigmas[0], percent_to_sigma)
    return steps if covered <= 0 else max(steps, round(steps / covered))
