"""`planning`: what every step of planning takes, and its share of dense attention's time."""

from __future__ import annotations

import argparse
from typing import Any

from dit_accel.accel.cli.bench_session import start
from dit_accel.accel.cli.columns import Column, columns_of, milliseconds
from dit_accel.accel.cli.needs import TORCH_NOTE

KIND = "dit-accel/bench-planning"
NOTE = (
    "Milliseconds of each step, medians (their number of runs is in the JSON, and a second one for each); sum: of the "
    "steps; share: the sum over dense attention as torch runs it. first: a run's first call, later: the ones after it. "
    "gathers: what the executor prepares at 16 bits because of the plan's orders. rest: what belongs to no step. "
    "inertia: mean squared distance of the keys to their nearest centroid, over their mean square. labels: the half of "
    "an iteration that finds each key's nearest centroid; its inertia is that of the labels it found."
)


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json after every row if asked. Raises Problem when something is missing."""
    session = start(options, KIND)
    from dit_accel.tests.bench.planning import rows_of

    for case in session.cases:
        for row in rows_of(case, session.patterns, options.density, session.rows.of(case.about())):
            session.rows.add(row)
            print(show([row]).splitlines()[-1], flush=True)
    print(f"\n{show(session.rows.rows)}\n\n{NOTE}")
    if session.no_kernel_because:
        print(TORCH_NOTE.format(reason=session.no_kernel_because))
    return 0


def show(rows: list[dict[str, Any]]) -> str:
    """A column for every step that some row has."""
    steps = list(dict.fromkeys(name for row in rows for name in row.get("steps_ms", {})))
    columns = (
        Column("inputs", "inputs"),
        Column("tokens", "tokens"),
        Column("heads", "heads"),
        Column("pattern", "pattern"),
        Column("density", "density", "{:.3f}".format),
        Column("call", "call"),
        *(Column(name, f"step {name}", milliseconds) for name in steps),
        Column("sum", "sum", milliseconds),
        Column("dense ms", "dense_ms", milliseconds),
        Column("share", "share", "{:.1%}".format),
        Column("inertia", "inertia", "{:.4f}".format),
        Column("remark", "remark"),
    )
    return columns_of(columns, [_flat(row) for row in rows])


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    if "steps_ms" not in row:
        return row
    total = sum(row["steps_ms"].values())
    steps = {f"step {name}": value for name, value in row["steps_ms"].items()}
    return {**row, **steps, "sum": total, "share": total / row["dense_ms"]}
