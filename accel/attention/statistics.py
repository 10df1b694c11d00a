"""What happened in a sampling run: counts, densities and times, read from the device once per forward."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field

import torch

from .plan import SparsePlan


class Stopwatch:
    """Marks moments of one call without a host sync: CUDA events on a GPU, the clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list = []
        self.mark()

    def mark(self) -> None:
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def laps(self) -> list[float]:
        """Seconds between successive marks; on a GPU the work must have ended."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        return [a.elapsed_time(b) / 1000 if self._cuda else b - a for a, b in pairs]


@dataclass
class ForwardStatistics:
    """Calls of one model evaluation. Densities stay on the device until `read`.

    sparse: calls by backend, "triton 8-bit" apart from "triton". dense: calls by reason. expected: self-attention
    calls that the family row announces. measured: density of each sparse call by its key, filled by `read`.
    """

    sparse: Counter[str] = field(default_factory=Counter)
    dense: Counter[str] = field(default_factory=Counter)
    expected: int = 0
    measured: dict[Hashable, float] = field(default_factory=dict)
    _keys: list[Hashable] = field(default_factory=list)
    _densities: list[torch.Tensor] = field(default_factory=list)
    _capped: list[torch.Tensor] = field(default_factory=list)
    _watches: list[Stopwatch] = field(default_factory=list)

    @classmethod
    def all_dense(cls, reason: str, calls: int) -> ForwardStatistics:
        """A forward that we left alone; a model of unknown family counts as one call."""
        return cls(dense=Counter({reason: max(calls, 1)}), expected=calls)

    def record(self, plan: SparsePlan, watch: Stopwatch, backend: str, key: Hashable = None) -> None:
        """One sparse call, with a stopwatch marked at its start, after planning and after execution. key: the call's
        identity in the run."""
        self.sparse[backend] += 1
        self._keys.append(key)
        self._densities.append(plan.density())
        if plan.capped is not None:
            self._capped.append(plan.capped.float().mean())
        self._watches.append(watch)

    def read(self) -> tuple[float, float, float, float]:
        """Sums over the sparse calls of density, capped share, plan seconds and execution seconds. Waits for the
        device."""
        if not self._densities:
            return 0.0, 0.0, 0.0, 0.0
        capped = torch.stack(self._capped).sum() if self._capped else torch.zeros_like(self._densities[0])
        *densities, capped = torch.stack([*self._densities, capped]).tolist()
        self.measured = dict(zip(self._keys, densities, strict=True))
        laps = [watch.laps() for watch in self._watches]
        return sum(densities), capped, sum(lap[0] for lap in laps), sum(lap[1] for lap in laps)


@dataclass(frozen=True)
class RunSummary:
    """A finished run, as shown to the user and kept for the report.

    density: mean kept fraction of the sparse calls, 0..1. capped: share of their query blocks that the
    budget's maximum density cut. plan_share: planning's part of their time, 0..1. expected: self-attention
    calls that the model makes, as its family row says. notes: sentences for the user.
    """

    pattern: str
    model: str
    budget: str
    forwards: int = 0
    sparse: dict[str, int] = field(default_factory=dict)
    dense: dict[str, int] = field(default_factory=dict)
    expected: int = 0
    density: float = 0.0
    capped: float = 0.0
    plan_share: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def sparse_calls(self) -> int:
        return sum(self.sparse.values())

    @property
    def dense_calls(self) -> int:
        return sum(self.dense.values())

    def line(self) -> str:
        """One log line; `parse_line` reads its numbers back."""
        parts = [f"{self.pattern} on {self.model}, budget {self.budget}: {self.sparse_calls} sparse calls"]
        if self.sparse:
            parts.append(
                f"mean density {self.density:.3f}, planning {self.plan_share:.0%} of their time, "
                f"backend {', '.join(self.sparse)}"
            )
            if self.capped:
                parts.append(f"max_density cut {self.capped:.1%} of the query blocks")
        parts.append(f"{self.dense_calls} dense calls" + (f" ({_counts(self.dense)})" if self.dense else ""))
        return "; ".join([*parts, *self.notes])


_LINE = re.compile(
    r"(?P<pattern>\w+) on (?P<model>[\w.]+), budget (?P<budget>[\w ()]+): (?P<sparse>\d+) sparse calls"
    r"(?:; mean density (?P<density>[\d.]+), planning (?P<plan>\d+)% of their time, backend (?P<backend>[\w, -]+))?"
    r"(?:; max_density cut [^;]*)?; \d+ dense calls(?: \((?P<dense>.*? \d+)\)(?=; |$))?",
    re.MULTILINE,
)

_COUNT = re.compile(r"(?:^|, )(.+?) (\d+)(?=, |$)")


def parse_line(line: str) -> dict | None:
    """The numbers of `RunSummary.line` found in a log line, or None: pattern, model, budget, sparse (calls),
    density, plan_share, backend, dense (calls by reason). For programs that drive a server and see only its log."""
    match = _LINE.search(line)
    if match is None:
        return None
    return {
        "pattern": match["pattern"],
        "model": match["model"],
        "budget": match["budget"],
        "sparse": int(match["sparse"]),
        "density": float(match["density"]) if match["density"] else None,
        "plan_share": int(match["plan"]) / 100 if match["plan"] else None,
        "backend": match["backend"],
        "dense": {name: int(count) for name, count in _COUNT.findall(match["dense"] or "")},
    }


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
