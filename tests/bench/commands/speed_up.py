"""How many times as fast as a baseline a row is."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

Row = dict[str, Any]


def with_speed_up(
    rows: Sequence[Row], is_baseline: Callable[[Row], bool], same: Callable[[Row], Hashable]
) -> list[Row]:
    """The rows with the field `speed_up` where they were timed beside a valid baseline, other than themselves: its
    faster median over their slower one. same: what a row has in common with its baseline."""
    baselines = {same(row): row for row in rows if is_baseline(row) and row["valid"]}
    result = []
    for row in rows:
        baseline = baselines.get(same(row))
        if baseline and baseline is not row and "again_ms" in row:
            fastest = min(baseline["ms"], baseline["again_ms"])
            row = {**row, "speed_up": fastest / max(row["ms"], row["again_ms"])}
        result.append(row)
    return result
