"""All bars, and where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dit_accel.tests.bench.bars import attention, gate, growth, others, planning
from dit_accel.tests.bench.bars.bar import DEVICE, MET, MISSED, OPEN, Bar, Row, Tables, judged

BARS: tuple[Bar, ...] = (
    *attention.bars(),
    *planning.bars(),
    *growth.bars(),
    *gate.bars(),
    *others.bars(),
)


def judge(tables: Tables) -> list[Row]:
    """A row for every bar. tables: rows by the table's name, each of one machine."""
    return [judged(bar, tables) for bar in BARS]


def of_one_machine(rows: Sequence[Row]) -> list[Row]:
    """Those of an H200, of the last one where there are several; without one those of the last machine."""
    machines = [row["machine"] for row in rows]
    right = [machine for machine in machines if DEVICE in machine.partition(";")[0]]
    chosen = (right or machines or [None])[-1]
    return [row for row in rows if row["machine"] == chosen]


def state(rows: Iterable[Row]) -> str:
    """Where the bars stand, in one sentence."""
    rows = list(rows)
    count = Counter(row["verdict"] for row in rows)
    sentence = f"Of {len(rows)} bars {count[MET]} are met, {count[MISSED]} are not met and {count[OPEN]} are open"
    if any(row["machine"] and DEVICE in row["machine"].partition(";")[0] for row in rows):
        return f"{sentence}."
    return f"{sentence}: nothing has been measured on an {DEVICE}."
