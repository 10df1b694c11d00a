"""A finished sampling run in numbers and in one line of words."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .marks import Mark
from .recording import Recording
from .timeline import Timeline


@dataclass(frozen=True)
class RunSummary:
    """A finished run, as shown to the user and kept for the report.

    density: mean kept fraction of the sparse calls, 0..1. capped: share of their query blocks that the
    budget's maximum density cut. plan_share: planning's part of their time, 0..1. expected: self-attention
    calls that the model makes, as its family row says. notes: sentences for the user. timeline: the run cell by cell.
    recording: what Record measured in it. profiled: whether the budget had a profile. start, end: latents that the run
    began with and made (see `marks`).
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
    timeline: Timeline = field(default_factory=Timeline)
    recording: Recording | None = None
    profiled: bool = False
    start: Mark | None = None
    end: Mark | None = None

    @property
    def sparse_calls(self) -> int:
        return sum(self.sparse.values())

    @property
    def dense_calls(self) -> int:
        return sum(self.dense.values())

    def line(self) -> str:
        """One log line; `parse_line` reads its numbers back."""
        budget = f"{self.budget} with a profile" if self.profiled else self.budget
        parts = [f"{self.pattern} on {self.model}, budget {budget}: {self.sparse_calls} sparse calls"]
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
