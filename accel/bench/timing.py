"""Times and memory of one computation: two medians after a warm-up, taken as a model would run it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ..attention.account.stopwatch import Stopwatch

# Compiling, allocating and the first touch of memory end within these.
WARM_UP = {"cuda": 3, "cpu": 1}
GPU_REPEATS = 20
CPU_REPEATS = 3


class Timing(NamedTuple):
    """out: the result of the last timed run; ms and again_ms: the two medians, in milliseconds. What lies between
    them is noise."""

    out: Any
    ms: float
    again_ms: float


def default_repeats(device: str) -> int:
    """Runs in each median: enough for one on a GPU, fewer where the reference takes seconds."""
    return GPU_REPEATS if device == "cuda" else CPU_REPEATS


def timed(function: Callable[[], Any], repeats: int, device: torch.device) -> Timing:
    """Two medians of `repeats` runs each, one after the other. On a GPU runs are queued without waiting, as a model
    queues its calls, so work that only the host does counts where it keeps the GPU waiting. The warm-up is no longer
    than a median."""
    for _ in range(min(WARM_UP[device.type], repeats)):
        function()
    medians = []
    for _ in range(2):
        _synchronise(device)
        watch = Stopwatch(device)
        for _ in range(repeats):
            out = function()
            watch.mark()
        _synchronise(device)
        medians.append(statistics.median(watch.laps()) * 1000)
    return Timing(out, *medians)


def once(function: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """The result and the milliseconds of one run, set-up and waiting included."""
    _synchronise(device)
    watch = Stopwatch(device)
    out = function()
    watch.mark()
    _synchronise(device)
    return out, watch.laps()[0] * 1000


def peak_bytes(function: Callable[[], torch.Tensor], device: torch.device) -> int | None:
    """The most memory that a run takes beyond what was there before it and beyond its result; None where torch keeps
    no such count."""
    if device.type != "cuda":
        return None
    _synchronise(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    out = function()
    _synchronise(device)
    return torch.cuda.max_memory_allocated(device) - before - out.nbytes


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
