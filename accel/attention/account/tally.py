"""Adds up forwards to the timeline of a run."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from .. import reasons
from .forward_statistics import CallNumbers, ForwardStatistics
from .timeline import Grid, Step, Timeline, Times


@dataclass
class _Cell:
    densities: list[float] = field(default_factory=list)
    masses: list[float] = field(default_factory=list)
    error: float = 0.0
    norm: float = 0.0

    def add(self, call: CallNumbers) -> None:
        self.densities.append(call.density)
        if call.sample is not None and call.finite:
            self.error += call.sample.error
            self.norm += call.sample.norm
            self.masses.append(call.sample.mass)

    def relative_error(self) -> float | None:
        return math.sqrt(self.error / self.norm) if self.masses and self.norm else None


@dataclass
class _Column:
    sigma: float
    forwards: int = 0
    seconds: float = 0.0
    sparse: int = 0
    untouched: int = 0
    observed: bool = False
    reasons: Counter[str] = field(default_factory=Counter)
    cells: dict[int, _Cell] = field(default_factory=dict)

    def density(self, layer: int) -> float | None:
        """Evaluations that were left alone count as dense calls of every layer."""
        cell = self.cells.get(layer)
        densities = ([] if cell is None else cell.densities) + [1.0] * self.untouched
        return sum(densities) / len(densities) if densities else None


class Tally:
    """Takes in forwards, one after the other; `timeline` gives the cells and times so far."""

    def __init__(self) -> None:
        self._columns: dict[int, _Column] = {}
        self._layers = 0
        self._announced = 0
        self._times: defaultdict[str, float] = defaultdict(float)

    def add(self, forward: ForwardStatistics) -> None:
        """A finished forward that was read. One without any attention call leaves no trace."""
        if forward.silent:
            return
        seconds = forward.seconds()
        column = self._columns.setdefault(forward.step, _Column(forward.sigma))
        column.forwards += 1
        column.seconds += seconds
        column.sparse += forward.sparse.total()
        column.observed |= forward.observed
        column.reasons += forward.dense if forward.whole is None else Counter({forward.whole: 1})
        column.untouched += forward.whole is not None and not forward.calls
        for call in forward.calls:
            column.cells.setdefault(call.block, _Cell()).add(call)
            self._layers = max(self._layers, call.block + 1)
        self._announced = max(self._announced, forward.expected)
        self._spend(forward, seconds)

    def discard(self, forward: ForwardStatistics) -> None:
        """A forward whose result was thrown away: its time was spent all the same."""
        self._times["guard"] += forward.seconds()

    def _spend(self, forward: ForwardStatistics, seconds: float) -> None:
        self._times["recording"] += forward.observing
        seconds -= forward.observing
        if not forward.sparse:
            self._times["dense_steps"] += seconds
            return
        spent = 0.0
        for call in forward.calls:
            names = ("planning", "kernel", "guard") if call.top_p is not None else ("dense",)
            for name, lap in zip(names, call.laps, strict=False):
                self._times[name] += lap
                spent += lap
        self._times["other"] += max(0.0, seconds - spent)

    def timeline(self, guard: tuple[str, ...]) -> Timeline:
        """guard: what it said."""
        # The blocks that came by count; where none did, the calls that the family's row announces.
        layers = range(self._layers or self._announced)
        columns = [self._columns[number] for number in sorted(self._columns)]

        def grid(value) -> Grid:
            return tuple(tuple(value(column, layer) for column in columns) for layer in layers)

        def error(column: _Column, layer: int) -> float | None:
            return column.cells[layer].relative_error() if layer in column.cells else None

        def mass(column: _Column, layer: int) -> float | None:
            masses = column.cells[layer].masses if layer in column.cells else []
            return sum(masses) / len(masses) if masses else None

        return Timeline(
            steps=tuple(_step(number, self._columns[number]) for number in sorted(self._columns)),
            density=grid(_Column.density),
            error=grid(error),
            mass=grid(mass),
            times=Times(**self._times),
            guard=guard,
        )


def _step(number: int, column: _Column) -> Step:
    dense = None if column.sparse else reasons.commonest(column.reasons)
    return Step(number + 1, column.sigma, column.forwards, column.seconds, dense, column.observed)
