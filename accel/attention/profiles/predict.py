"""What a profile is expected to do to the time of a step and of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..account.recording import Timing


@dataclass(frozen=True)
class Prediction:
    """Seconds of a step and of a run of `steps`, `dense_steps` of them dense in either case; None where the run that
    was measured says nothing. problem: why sparse attention brings no speed here, or None."""

    dense_step: float | None
    sparse_step: float | None
    steps: int
    dense_steps: int
    problem: str | None = None

    @property
    def dense_run(self) -> float | None:
        return None if self.dense_step is None else self.steps * self.dense_step

    @property
    def sparse_run(self) -> float | None:
        if self.dense_step is None or self.sparse_step is None:
            return None
        return self.dense_steps * self.dense_step + (self.steps - self.dense_steps) * self.sparse_step

    @property
    def speed(self) -> float | None:
        """How many times faster a sparse step is than a dense one."""
        if self.dense_step is None or self.sparse_step is None:
            return None
        return self.dense_step / self.sparse_step

    def words(self) -> str:
        if self.dense_step is None or self.dense_run is None:
            return f"the time of a step is not known: {self.problem}"
        dense = f"a step takes {seconds(self.dense_step)} dense"
        if self.speed is None or self.sparse_step is None or self.sparse_run is None:
            return f"{dense}, a run of {self.steps} steps {seconds(self.dense_run)}; no speed here: {self.problem}"
        slower = "" if self.speed > 1 else ": sparse attention is no faster than dense on this machine"
        return (
            f"{dense}, {seconds(self.sparse_step)} sparse ({self.speed:.3g}x){slower}; "
            f"a run of {self.steps} steps {seconds(self.dense_run)} dense, "
            f"{seconds(self.sparse_run)} with {self.dense_steps} of them dense"
        )


def seconds(value: float) -> str:
    """To two digits or whole seconds: 25 ms, 4.1 s, 153 s."""
    if value < 1:
        return f"{value * 1000:.2g} ms" if value < 0.1 else f"{value * 1000:.0f} ms"
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


class Measured(NamedTuple):
    """The fields of a Timing in which everything was measured."""

    dense_step: float
    dense_call: float
    calls: int
    sparse: tuple[tuple[float, float], ...]


def measured(timing: Timing) -> Measured | str:
    """What was measured, or why nothing can be said of the speed of sparse calls here."""
    if timing.problem is not None:
        return timing.problem
    if timing.dense_step and timing.dense_call and timing.sparse:
        return Measured(timing.dense_step, timing.dense_call, timing.calls, timing.sparse)
    times = {"dense step": timing.dense_step, "dense attention call": timing.dense_call, "sparse call": timing.sparse}
    return f"no {' and no '.join(name for name, value in times.items() if not value)} could be timed"


def sparse_call(timing: Measured, density: float) -> float:
    """Seconds of a sparse call with planning, from the straight line through the measured ones.

    The line is the least-squares one with neither slope nor intercept below 0: planning costs what it costs, and each
    kept block its share. Calls of one density alone do not tell these two apart; there the second point is a dense
    call, which computes what a sparse one of density 1 does.
    """
    points = list(timing.sparse)
    if len({d for d, _ in points}) == 1:
        points.append((1.0, timing.dense_call))
    count = len(points)
    x, y = (sum(values) / count for values in zip(*points, strict=True))
    spread = sum((d - x) ** 2 for d, _ in points)
    slope = sum((d - x) * (taken - y) for d, taken in points) / spread if spread else 0.0
    if slope < 0:
        return y
    if y < slope * x:
        return density * sum(d * taken for d, taken in points) / sum(d * d for d, _ in points)
    return y + slope * (density - x)


def predict(timing: Timing, density: Sequence[float]) -> Prediction:
    """density [L]: of each layer. A layer that keeps everything (density 1) runs dense."""
    known = measured(timing)
    if isinstance(known, str):
        return Prediction(timing.dense_step, None, timing.steps, timing.dense_steps, known)
    calls = [known.dense_call if d >= 1 else sparse_call(known, d) for d in density]
    # A step may have several forwards, and has that many calls of each layer.
    rest = max(known.dense_step - known.calls * known.dense_call, 0.0)
    step = rest + known.calls * sum(calls) / len(calls)
    return Prediction(known.dense_step, step, timing.steps, timing.dense_steps)
