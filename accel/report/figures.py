"""Numbers that the picture, the text and the advice share, read from a run's timeline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict

from ..attention.account.timeline import Grid, Timeline

# Fields of `Times`, in the order in which they are shown, as people call them.
TIME_NAMES = {
    "planning": "planning",
    "kernel": "kernel",
    "dense": "dense calls",
    "other": "other layers",
    "dense_steps": "dense steps",
    "guard": "guard",
    "recording": "recording",
}


def finite(value: float | None) -> float | None:
    """None also for what is no number: nothing can be said of it."""
    return value if value is not None and math.isfinite(value) else None


def measured(grid: Grid) -> list[float]:
    """The cells in which something was measured."""
    return [value for row in grid for value in row if finite(value) is not None]


def mean(values: Iterable[float]) -> float | None:
    """None of nothing."""
    values = list(values)
    return sum(values) / len(values) if values else None


def sparse_steps(timeline: Timeline) -> list[int]:
    """Columns of the grids: the steps in which something was sparse."""
    return [column for column, step in enumerate(timeline.steps) if step.dense is None]


def time_shares(timeline: Timeline) -> list[tuple[str, float, float]]:
    """(field of `Times`, seconds, share of their sum) in the order of TIME_NAMES, without what took no time."""
    seconds = asdict(timeline.times)
    total = sum(seconds.values())
    return [(name, seconds[name], seconds[name] / total) for name in TIME_NAMES if seconds[name] > 0]


def by_count(counts: dict[str, int]) -> list[tuple[str, int]]:
    """The most frequent first, and none that never happened."""
    return sorted(((name, count) for name, count in counts.items() if count), key=lambda item: -item[1])


def seconds_text(seconds: float) -> str:
    """Three digits: 12.3 s."""
    return f"{seconds:.{2 if seconds < 10 else 1 if seconds < 100 else 0}f} s"


def per_cent(share: float) -> str:
    """31 %, and 0.4 % where whole numbers would say nothing."""
    return f"{100 * share:.1f} %" if 0 < share < 0.0095 else f"{100 * share:.0f} %"


def ranges(numbers: Iterable[int]) -> str:
    """Numbers as the input dense_blocks takes them: 0, 1, 2 and 7 are `0-2, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
