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
from ..scalars import Scalars
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
    looked. sample: None where there was none, or where it met NaN or Inf. key: the call's identity in the run."""

    block: int
    density: float
    capped: float
    laps: tuple[float, ...]
    top_p: float | None = None
    finite: bool = True
    sample: SampleNumbers | None = None
    key: Hashable = None


@dataclass
class _Call:
    """place: of a sparse call among the numbers on the device: density, part that was capped, the output's total if
    `watched`, and a Sample if there was one."""

    block: int
    watch: Stopwatch | None
    key: Hashable = None
    top_p: float | None = None
    place: int | None = None
    watched: bool = False


@dataclass
class ForwardStatistics:
    """Calls of one forward; what the device computed stays there until `read`. Of a plan only scalars are kept.

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
    _numbers: Scalars = field(default_factory=lambda: Scalars(3 + len(Sample._fields)))
    _trials: list[tuple[Tensor, Stopwatch]] = field(default_factory=list)
    _observing: list[Stopwatch] = field(default_factory=list)
    _was_read: bool = False

    @classmethod
    def all_dense(cls, reason: str, expected: int, **facts) -> ForwardStatistics:
        """A forward that we left alone; a model of unknown family counts as one call. facts: further fields."""
        return cls(dense=Counter({reason: max(expected, 1)}), expected=expected, whole=reason, **facts)

    @property
    def silent(self) -> bool:
        """No attention call came by: a cache skipped the forward, or what runs it does not ask us."""
        return not self.sparse and not self.dense

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
        is finite if the output is. Never waits; a call whose numbers find no memory is not counted."""
        density = plan.density()
        capped = torch.zeros_like(density) if plan.capped is None else plan.capped.mean(dtype=torch.float32)
        place = self._numbers.add([density, capped, *([] if total is None else [total]), *(sample or ())])
        self.sparse[backend] += 1
        self._calls.append(_Call(block, watch, key, top_p, place, watched=total is not None))

    def record_dense(self, block: int, watch: Stopwatch | None, key: Hashable = None) -> None:
        """One dense video self-attention call; its reason is counted apart."""
        self._calls.append(_Call(block, watch, key))

    def record_trial(self, plan: SparsePlan, watch: Stopwatch) -> None:
        """A sparse call, planned and run between two marks of the watch, whose result nobody uses."""
        self._trials.append((plan.density(), watch))

    def record_observation(self, block: int, measured: tuple[Tensor, ...], watch: Stopwatch) -> None:
        """What was measured of a call, trials among it, between two marks of the watch."""
        self.observations.append((block, measured))
        self._observing.append(watch)

    def read(self) -> None:
        """Waits for the device, the first time. Needs none of its memory."""
        if self._was_read:
            return
        self._was_read = True
        numbers = self._numbers.read()
        self.calls = [_read(call, numbers) for call in self._calls]
        self.finite = self.total is None or math.isfinite(self.total.item())
        self.trials = [(density.item(), sum(watch.laps())) for density, watch in self._trials]
        self.observing = sum(sum(watch.laps()) for watch in self._observing)
        self.measured = {
            call.key: on_host.density
            for call, on_host in zip(self._calls, self.calls, strict=True)
            if call.place is not None
        }

    def seconds(self) -> float:
        """Of the whole forward. Waits for the device."""
        return 0.0 if self.watch is None else sum(self.watch.laps())


def _read(call: _Call, numbers: Sequence[Sequence[float]]) -> CallNumbers:
    laps = () if call.watch is None else tuple(call.watch.laps())
    if call.place is None:
        return CallNumbers(call.block, 1.0, 0.0, laps, key=call.key)
    density, capped, *rest = numbers[call.place]
    finite = True
    if call.watched:
        total, *rest = rest
        finite = math.isfinite(total)
    # A sample that met NaN or Inf, in a key that was not kept perhaps, measured nothing.
    sample = SampleNumbers(*rest) if rest and all(map(math.isfinite, rest)) else None
    return CallNumbers(call.block, density, capped, laps, call.top_p, finite, sample, call.key)
