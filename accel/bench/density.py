"""The budget that gives a density: patterns are compared at equal density, found by bisection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..attention.budget import Budget
from ..attention.call import AttentionCall
from ..attention.plan import SparsePlan
from ..attention.planners import PATTERNS

# Bisection steps for the dial (top_p, or Sol-Attn's tau) that gives a density.
STEPS = 9
# A pattern whose blocks are too coarse to come nearer to a density than this part of it has no row there.
LEAST = 0.85


def plan_at(make_call: Callable[[], AttentionCall], pattern: str, density: float) -> SparsePlan | None:
    """The plan of `budget_at`."""
    choice = budget_at(make_call, pattern, density)
    return choice and choice[1]


def budget_at(make_call: Callable[[], AttentionCall], pattern: str, density: float) -> tuple[Budget, SparsePlan] | None:
    """The budget of the densest plan of `pattern` that does not exceed `density`, and that plan, or None where even
    the densest has less than LEAST of it. The dial is max_density for a static pattern and top_p for the others.
    Every trial is a run's first call."""
    entry = PATTERNS[pattern]

    def at(dial: float) -> tuple[tuple[Budget, SparsePlan], float]:
        budget = Budget(top_p=1.0, floor=0.0, max_density=dial) if entry.static else Budget(top_p=dial, floor=0.0)
        plan = entry.plan(make_call(), budget.spending())
        return (budget, plan), plan.density().item()

    return bisect(at, 0.01 if entry.static else 0.05, 1.0, density)


def bisect(at: Callable[[float], tuple[Any, float]], low: float, high: float, density: float) -> Any | None:
    """The result of `at` for the highest dial whose density does not exceed `density`; density grows with the dial."""
    best, reached = at(high)
    if reached <= density:
        return best
    best, reached = at(low)
    if reached > density:
        return None
    for _ in range(STEPS):
        middle = (low + high) / 2
        trial, actual = at(middle)
        if actual <= density:
            low, best, reached = middle, trial, actual
        else:
            high = middle
    return best if reached >= LEAST * density else None
