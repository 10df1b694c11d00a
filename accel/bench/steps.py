"""Where the time of planning goes, step by step, measured in the very calls that a model makes."""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...kernels.axis_tree import tree_order
from ...kernels.compensation_error import log_compensation_error
from ...kernels.top_p import select_blocks
from ..attention import blocks, clusters, select, static, trees
from ..attention.evaluation import Stopwatch
from ..attention.planners import svg1

PACKAGE = __name__.rpartition(".accel.")[0]
REST = "rest"
# Functions of planning, and the step that each belongs to; what one calls that has a step itself counts there.
STEPS: dict[Callable, str] = {
    clusters.sample_centroids: "clustering",
    clusters.kmeans_clusters: "clustering",
    trees.second_moment: "weights",
    tree_order: "trees",
    svg1.profile: "profile",
    select.means: "means",
    select.estimated_mass: "map",
    select_blocks: "map",
    select.prune: "map",
    static.plan_static: "map",
    log_compensation_error: "errors",
    select.make_tail: "tail",
    blocks.block_order: "orders",
    clusters.Clusters.block_order: "orders",
}


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
    with _watched(lambda: watches[-1]):
        for _ in range(repeats):
            watches.append(StepWatch(device))
            plan()
            watches[-1].stop()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    calls = [watch.milliseconds() for watch in watches]
    return {name: statistics.median(call.get(name, 0.0) for call in calls) for name in {n: 0 for c in calls for n in c}}


@contextmanager
def _watched(current: Callable[[], StepWatch]) -> Iterator[None]:
    """The functions of STEPS tell the current watch when they run, wherever the pack has a name for them."""
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{PACKAGE}.")]
    places = [*modules, clusters.Clusters]
    replaced = []
    for function, step in STEPS.items():
        watched = _watching(function, step, current)
        for place in places:
            for name, value in list(vars(place).items()):
                if value is function:
                    setattr(place, name, watched)
                    replaced.append((place, name, function))
    try:
        yield
    finally:
        for place, name, function in replaced:
            setattr(place, name, function)


def _watching(function: Callable, step: str, current: Callable[[], StepWatch]) -> Callable:
    def watched(*arguments, **options):
        with current().step(step):
            return function(*arguments, **options)

    return watched
