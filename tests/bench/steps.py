"""Where the time of planning goes, step by step, measured in the very calls that a model makes."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dit_accel.accel.attention.account.stopwatch import Stopwatch
from dit_accel.accel.attention.planners.steps import listening

REST = "rest"  # what belongs to no step


class StepWatch:
    """Shares the time of a call out among the innermost steps that run."""

    def __init__(self, device: torch.device) -> None:
        self._watch = Stopwatch(device)
        self._running = [REST]
        self._laps: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self._mark()
        self._running.append(name)
        try:
            yield
        finally:
            self._mark()
            self._running.pop()

    def stop(self) -> None:
        self._mark()

    def milliseconds(self) -> dict[str, float]:
        """Of every step; on a GPU the work must have ended."""
        total: dict[str, float] = defaultdict(float)
        for name, seconds in zip(self._laps, self._watch.laps(), strict=True):
            total[name] += seconds * 1000
        return dict(total)

    def _mark(self) -> None:
        self._watch.mark()
        self._laps.append(self._running[-1])


def step_medians(plan: Callable[[], Any], repeats: int, device: torch.device) -> dict[str, float]:
    """Median milliseconds of every step of `plan` over `repeats` calls; the sum of a call's steps is the call."""
    watches = []
    with listening(lambda name: watches[-1].step(name)):
        for _ in range(repeats):
            watches.append(StepWatch(device))
            plan()
            watches[-1].stop()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    calls = [watch.milliseconds() for watch in watches]
    return {name: statistics.median(call.get(name, 0.0) for call in calls) for name in {n: 0 for c in calls for n in c}}
