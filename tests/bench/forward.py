"""Whole evaluations of a model, dense and sparse: what attention's speed is worth once everything else runs too."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dit_accel.accel.attention import reasons
from dit_accel.accel.attention.account.run_summary import RunSummary
from dit_accel.accel.attention.budget import Budget
from dit_accel.accel.attention.run import Settings
from dit_accel.accel.bench.case import relative_error
from dit_accel.accel.bench.drawn import drawn_frames
from dit_accel.accel.bench.pattern_row import verdict
from dit_accel.accel.bench.sweep import Target
from dit_accel.accel.bench.timing import Timing, peak_bytes, timed

# Channels of a latent of Wan 2.1, and its pixels in a token's side.
CHANNELS, PATCH = 16, 2
Work = Callable[[Callable[[], Tensor]], "Measured"]


class Clock(Protocol):
    def milliseconds(self, calls: int) -> float:
        """That the last `calls` calls of video self-attention took."""


class Model(Protocol):
    """Something that hands `work` a function: one evaluation of it, which returns a tensor."""

    def dense(self, work: Work) -> tuple[Measured, Clock]: ...

    def sparse(self, settings: Settings, work: Work) -> tuple[Measured, RunSummary]: ...


class Measured(NamedTuple):
    """timing: of one evaluation; peak_bytes: beyond weights, input and output, None where torch does not count."""

    timing: Timing
    peak_bytes: int | None


@dataclass
class Case:
    """A model of so many layers on a grid (T, H, W) of tokens. shape: its other numbers, for the rows. make: builds it,
    when the first row needs it. repeats: evaluations in each median."""

    make: Callable[[], Model]
    shape: dict[str, Any]
    layers: int
    grid: tuple[int, int, int]
    device: torch.device
    repeats: int

    @cached_property
    def model(self) -> Model:
        return self.make()

    @cached_property
    def dense(self) -> tuple[Measured, float]:
        """And self-attention's share of its time, 0..1, in the very evaluations that were timed and the last one."""
        measured, clock = self.model.dense(self.work)
        evaluations = 2 * self.repeats + 1
        attention = clock.milliseconds(evaluations * self.layers) / evaluations
        return measured, attention / ((measured.timing.ms + measured.timing.again_ms) / 2)

    def work(self, evaluate: Callable[[], Tensor]) -> Measured:
        return Measured(timed(evaluate, self.repeats, self.device), peak_bytes(evaluate, self.device))

    def about(self) -> dict[str, Any]:
        return {
            "what": "block" if self.layers == 1 else "forward",
            "layers": self.layers,
            "tokens": math.prod(self.grid),
            "grid": list(self.grid),
            "repeats": self.repeats,
            **self.shape,
        }


def drawn_latent(grid: tuple[int, int, int]) -> Tensor:
    """fp32 [1, 16, T, 2 H, 2 W] of unit size: a drawn clip, its colours spread over the channels."""
    t, h, w = grid
    frames = drawn_frames(t, h * PATCH, w * PATCH)
    mix = torch.randn(CHANNELS, 3, generator=torch.Generator().manual_seed(0))
    latent = torch.einsum("cr,trhw->cthw", mix, frames - frames.mean((0, 2, 3), keepdim=True))
    return (latent / latent.std((1, 2, 3), keepdim=True))[None]


def target_of(density: float) -> Target:
    """Every block of queries keeps that part of the keys: no search for a top_p, which would take many forwards."""
    return Target(density, Budget(top_p=1.0, floor=0.0, max_density=density))


def rows_of(
    case: Case,
    patterns: Sequence[str],
    targets: Sequence[Target],
    precisions: Sequence[str],
    fallback: str,
    done: Callable[..., bool],
) -> Iterator[dict[str, Any]]:
    """The rows of `case` one by one. fallback: as on the node. done(**fields) says that there is a row with such
    fields, which is left out."""
    for target in targets:
        # Sparse in all steps and layers, whatever the length.
        budget = replace(target.budget, dense_first=0.0, dense_last=0.0, dense_blocks=frozenset(), min_tokens=0)
        for pattern in patterns:
            for precision in precisions:
                # The guard would raise the density of weights that were never trained.
                settings = Settings(pattern, precision, guard="off", fallback=fallback, budget=budget)
                if not done(pattern=pattern, precision=precision, asked=target.words):
                    yield measure(case, settings, target)


def measure(case: Case, settings: Settings, target: Target) -> dict[str, Any]:
    """One row: evaluations under `settings` beside dense ones of the same model on the same input."""
    row = {
        **case.about(),
        "pattern": settings.pattern,
        "precision": settings.precision,
        "asked": target.words,
        "asked_density": target.density,
    }
    try:
        (dense, dense_peak), attention_share = case.dense
        (sparse, peak), summary = case.model.sparse(settings, case.work)
        error = relative_error(sparse.out, dense.out.float())
    # One pattern that cannot run must not cost the rows after it; the table shows it.
    except Exception as problem:
        return row | {"valid": False, "failed": True, "remark": f"failed: {type(problem).__name__}: {problem}"}
    row |= {
        "backend": ", ".join(summary.sparse),
        "density": summary.density,
        "sparse_share": sparse_share(summary),
        "error": error,
        "dense_ms": dense.ms,
        "dense_again_ms": dense.again_ms,
        "attention_share": attention_share,
        "sparse_ms": sparse.ms,
        "sparse_again_ms": sparse.again_ms,
        "peak_bytes": peak,
        "dense_peak_bytes": dense_peak,
    }
    return row | verdict(row)


def sparse_share(summary: RunSummary) -> float:
    """Of the video's self-attention calls that the model makes, those that ran sparse, 0..1."""
    reached = summary.sparse_calls + sum(reasons.of_video(summary.dense).values())
    return summary.sparse_calls / max(reached, summary.expected)
