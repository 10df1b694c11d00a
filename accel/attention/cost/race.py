"""The race: which calls are sparse where only the run's own times can tell, without a cost model of the device.

One layer is tried first; if its sparse calls take less time than dense ones, all layers follow, and each goes on as its
own times say. Trying costs time where it is lost, so that it stops at a small part of the run.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Hashable

from ..account.forward_statistics import CallNumbers, ForwardStatistics

LOSS = 0.01  # of a run's time, the most that sparse calls may have lost before no more are tried
WARM_UP = 2  # sparse calls of a layer before it is judged: the first makes what later ones find made
KEPT = 5  # times that a median is taken of
PATIENCE = 8  # forwards after which a layer that lost is tried again


class Race:
    """A run's race. steps: of the run, 0 if not known."""

    def __init__(self, steps: int = 0) -> None:
        self._steps = steps
        self._dense: dict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._sparse: dict[Hashable, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self._tried: dict[Hashable, int] = {}
        self._lost = self._seconds = 0.0
        self._forwards = 0
        self._trial: Hashable = None
        self._seen_steps: set[int] = set()
        self._asked = False

    def learn(self, forward: ForwardStatistics) -> None:
        """Takes in a finished forward, already read."""
        self._forwards += 1
        self._seen_steps.add(forward.step)
        self._seconds += forward.seconds()
        for call in forward.calls:
            if call.key is not None and call.laps:
                self._learn(call)
        self._trial = None

    def _learn(self, call: CallNumbers) -> None:
        seconds = sum(call.laps)
        if call.top_p is None:
            self._dense[call.key].append(seconds)
            return
        self._tried[call.key] = self._forwards
        self._sparse[call.key].append(seconds)
        self._lost += max(0.0, seconds - self._dense_seconds(call.key, seconds))

    def verdict(self, key: Hashable) -> bool | None:
        """Whether the call `key` of the next forward should be sparse; None where another is tried before it. Never
        waits. Asked once a call."""
        self._asked = True
        if len(self._sparse[key]) >= WARM_UP:
            if self._ratio(key) < 1:
                return True
            last = self._sparse[key][-1]
            again = self._forwards - self._tried[key] >= PATIENCE
            return again and self._may_lose(last - self._dense_seconds(key, last))
        leading = [other for other, times in self._sparse.items() if len(times) >= WARM_UP]
        if leading:
            # What the other layers gained says what to expect of this one.
            return statistics.median(map(self._ratio, leading)) < 1
        if self._trial is None and (self._sparse[key] or not any(self._sparse.values())):
            self._trial = key
        return True if self._trial == key else None

    @property
    def summary(self) -> str:
        """What sparse calls took of dense ones, in words; empty where that decided nothing."""
        if not self._asked:
            return ""
        ratios = [self._ratio(key) for key, times in self._sparse.items() if len(times) >= WARM_UP]
        if not ratios:
            return ""
        return f"sparse calls took {statistics.median(ratios):.2f} of the time of dense ones"

    def _ratio(self, key: Hashable) -> float:
        """Of the time of a layer's dense calls, what its sparse ones take."""
        sparse = statistics.median(list(self._sparse[key])[1:])
        return sparse / self._dense_seconds(key, sparse)

    def _dense_seconds(self, key: Hashable, unknown: float) -> float:
        """Of the layer, else of all layers."""
        times = self._dense[key] or [time for times in self._dense.values() for time in times]
        return statistics.median(times) if times else unknown

    def _may_lose(self, seconds: float) -> bool:
        steps = max(len(self._seen_steps), 1)
        expected = self._seconds * max(self._steps, steps) / steps
        return self._lost + seconds <= LOSS * expected
