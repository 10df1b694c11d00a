"""The bars of planning: its share of dense attention's time, and k-means beside flash-kmeans."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dit_accel.tests.bench.bars.bar import Bar, Measured, Open, Row, Tables, joined, percent, times
from dit_accel.tests.bench.bars.rows import DENSE_16, at_size, fastest, table_of, why_not

LATER = "later"  # calls that start from what the last one left


def bars() -> list[Bar]:
    """Rows of the table `planning`, and dense rows of the same inputs of `attention`."""
    result = [
        Bar(
            f"{pattern}: planning and gathers of a later call, of the best 16-bit dense",
            partial(share, pattern),
            percent,
            most=0.05,
        )
        for pattern in ("svg2", "svg_ear")
    ]
    for ours, peer in (("k-means", "flash-kmeans"), ("k-means labels", "flash-kmeans labels")):
        result.append(Bar(f"{ours} against {peer}", partial(clustering, ours, peer), times))
    return result


def share(pattern: str, tables: Tables) -> Measured:
    """All steps, the gathers that the executor makes for the plan's orders among them, by the slower medians, over the
    fastest dense row of the same inputs: the most of all densities."""
    attention = tables.get("attention", ())

    def of_inputs(rows: Sequence[Row]) -> Measured:
        later = [row for row in rows if row["pattern"] == pattern and row.get("call") == LATER]
        if not later:
            raise Open(why_not(rows, pattern))
        row = max(later, key=planned_ms)
        same = [other for other in attention if other["inputs_sha256"] == row["inputs_sha256"]]
        try:
            dense = fastest(same, DENSE_16)
        except Open as reason:
            # torch's own choice: what a model without the pack pays.
            return _share(row, row["dense_ms"], "dense as torch runs it", str(reason))
        return _share(row, min(dense.ms, row["dense_ms"]), dense.name, dense.missing)

    return at_size(table_of(tables, "planning"), of_inputs, max)


def planned_ms(row: Row) -> float:
    """The sum of all steps of a call, by the slower of two medians each."""
    return max(sum(row["steps_ms"].values()), sum(row["steps_again_ms"].values()))


def _share(row: Row, dense_ms: float, name: str, missing: str) -> Measured:
    on = f"density {row['asked_density']}, {row['inputs']}, {name}"
    return Measured(planned_ms(row) / dense_ms, on, row["machine"], missing=missing)


def clustering(name: str, peer: str, tables: Tables) -> Measured:
    """The peer's time over ours: the lowest of all inputs."""

    def of_inputs(rows: Sequence[Row]) -> Measured:
        measured = {row["pattern"]: row for row in rows if "steps_ms" in row}
        if missing := joined(*(why_not(rows, which) for which in (name, peer) if which not in measured)):
            raise Open(missing)
        mine, theirs = measured[name], measured[peer]
        fast = min(theirs[steps]["clustering"] for steps in ("steps_ms", "steps_again_ms"))
        on = f"{mine['clusters']} clusters, {mine['inputs']}"
        return Measured(fast / planned_ms(mine), on, mine["machine"])

    return at_size(table_of(tables, "planning"), of_inputs, min)
