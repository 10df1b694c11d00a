"""What happened in one forward, collected on the device and read from it once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..plan import SparsePlan
from .sample import Sample
from .stopwatch import Stopwatch


class SampleNumbers(NamedTuple):
    """A Sample on the host."""

    error: float
    norm: float
    mass: float


class CallNumbers(NamedTuple):
    """One video self-attention call, on the host. block: its transformer block. density: 1 for a dense one. laps:
    seconds of planning, attention and sampling of a sparse call, or of attention alone; none where it was not timed.
    top_p: the mass that a sparse call promised, None for a dense one. finite: whether its output was; true where nobody
    looked. sample: None where there was none, or where it met NaN or Inf."""

    block: int
    density: float
    capped: float
    laps: tuple[float, ...]
    top_p: float | None = None
    finite: bool = True
    sample: SampleNumbers | None = None


@dataclass
class _Call:
    block: int
    watch: Stopwatch | None
    plan: SparsePlan | None = None
    key: Hashable = None
    top_p: float | None = None
    total: Tensor | None = None
    sample: Sample | None = None


@dataclass
class ForwardStatistics:
    """Calls of one forward; what the device computed stays there until `read`.

    sparse: calls by backend, "triton 8-bit" apart from "triton". dense: calls by reason. expected: self-attention
    calls that the family row announces. step: of the sampler, from 0; sigma: its noise level. whole: why all of it is
    dense. observed: whether measurements are made in it. watch: of the forward. total: a scalar that is finite if
    its result is, None where nobody asks. observations: block and, still on the device, what was measured of its call.
    Filled by `read`: measured: density of each sparse call by its key; calls; finite: whether the result is; trials:
    density and seconds of sparse calls that were run for their time alone; observing: seconds that measurements took,
    trials among them.
    """

    sparse: Counter[str] = field(default_factory=Counter)
    dense: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    step: int = 0
    sigma: float = 0.0
    whole: str | None = None
    observed: bool = False
    watch: Stopwatch | None = None
    total: Tensor | None = None
    observations: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)
    measured: dict[Hashable, float] = field(default_factory=dict)
    calls: list[CallNumbers] = field(default_factory=list)
    finite: bool = True
    trials: list[tuple[float, float]] = field(default_factory=list)
    observing: float = 0.0
    _calls: list[_Call] = field(default_factory=list)
    _trials: list[tuple[SparsePlan, Stopwatch]] = field(default_factory=list)
    _observing: list[Stopwatch] = field(default_factory=list)
    _was_read: bool = False

    @classmethod
    def all_dense(cls, reason: str, expected: int, **facts) -> ForwardStatistics:
        """A forward that we left alone; a model of unknown family counts as one call. facts: further fields."""
        return cls(dense=Counter({reason: max(expected, 1)}), expected=expected, whole=reason, **facts)

    def record(
        self,
        plan: SparsePlan,
        watch: Stopwatch,
        backend: str,
        key: Hashable = None,
        *,
        block: int = 0,
        top_p: float = 1.0,
        total: Tensor | None = None,
        sample: Sample | None = None,
    ) -> None:
        """One sparse call, with a stopwatch marked at its start, after planning, after execution, and after sampling
        where that was done. key: the call's identity in the run. top_p: the mass that it promises. total: a scalar that
        is finite if the output is."""
        self.sparse[backend] += 1
        self._calls.append(_Call(block, watch, plan, key, top_p, total, sample))

    def record_dense(self, block: int, watch: Stopwatch | None) -> None:
        """One dense video self-attention call; its reason is counted apart."""
        self._calls.append(_Call(block, watch))

    def record_trial(self, plan: SparsePlan, watch: Stopwatch) -> None:
        """A sparse call, planned and run between two marks of the watch, whose result nobody uses."""
        self._trials.append((plan, watch))

    def record_observation(self, block: int, measured: tuple[Tensor, ...], watch: Stopwatch) -> None:
        """What was measured of a call, trials among it, between two marks of the watch."""
        self.observations.append((block, measured))
        self._observing.append(watch)

    def read(self) -> None:
        """Waits for the device, the first time."""
        if self._was_read:
            return
        self._was_read = True
        unread = [_unread(call) for call in self._calls]
        scalars = [scalar for of_call in unread for scalar in of_call]
        numbers = iter(_read(scalars if self.total is None else [*scalars, self.total]))
        self.calls = [
            _numbers(call, [next(numbers) for _ in of_call]) for call, of_call in zip(self._calls, unread, strict=True)
        ]
        self.finite = all(map(math.isfinite, numbers))  # what is left of them: the total
        densities = _read([plan.density() for plan, _ in self._trials])
        self.trials = [(d, sum(watch.laps())) for d, (_, watch) in zip(densities, self._trials, strict=True)]
        self.observing = sum(sum(watch.laps()) for watch in self._observing)
        self.measured = {
            call.key: on_host.density
            for call, on_host in zip(self._calls, self.calls, strict=True)
            if call.plan is not None
        }

    def seconds(self) -> float:
        """Of the whole forward. Waits for the device."""
        return 0.0 if self.watch is None else sum(self.watch.laps())


def _unread(call: _Call) -> list[Tensor]:
    if call.plan is None:
        return []
    capped = call.plan.capped
    density = call.plan.density()
    scalars = [density, torch.zeros_like(density) if capped is None else capped.float().mean()]
    scalars += [] if call.total is None else [call.total]
    return scalars + ([] if call.sample is None else list(call.sample))


def _numbers(call: _Call, numbers: Sequence[float]) -> CallNumbers:
    laps = () if call.watch is None else tuple(call.watch.laps())
    if call.plan is None:
        return CallNumbers(call.block, 1.0, 0.0, laps)
    density, capped, *rest = numbers
    finite = True
    if call.total is not None:
        total, *rest = rest
        finite = math.isfinite(total)
    # A sample that met NaN or Inf, in a key that was not kept perhaps, measured nothing.
    sample = SampleNumbers(*rest) if rest and all(map(math.isfinite, rest)) else None
    return CallNumbers(call.block, density, capped, laps, call.top_p, finite, sample)


def _read(scalars: Sequence[Tensor]) -> list[float]:
    """Numbers on one device, with one copy."""
    return torch.stack([scalar.float() for scalar in scalars]).tolist() if scalars else []
