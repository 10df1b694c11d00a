"""`bars`: what the benches measured, held against the bars of speed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dit_accel.accel.attention.cost.fits import FORMAT, read_fit
from dit_accel.accel.cli import Problem, bench_attention
from dit_accel.accel.cli.needs import need_writable_file
from dit_accel.accel.cli.row_file import read
from dit_accel.accel.cli.table import table
from dit_accel.accel.files import write_json
from dit_accel.tests.bench.commands import dcae, forward, linear, planning

KIND, VERSION = "dit-accel/bars", 1
# What tests/bench/first_calls.py and checks.py write.
FIRST_CALLS, CHECKS = "dit-accel/first-calls", "dit-accel/gpu-checks"
TABLES = {
    bench_attention.KIND: "attention",
    planning.KIND: "planning",
    linear.KIND: "linear",
    dcae.KIND: "dcae",
    forward.KIND: "forward",
    FIRST_CALLS: "first_calls",
    CHECKS: "checks",
}
# Files of bench_attention.KIND with such names are tables of their own; `gate` is what `bench gate` wrote.
GROWTH, SHORT, HEAD64, GATE = "growth", "short", "head64", "gate"
NOTE = (
    "measured: the worst of what the bar stands for, with the slower of our two medians and the faster of the others'. "
    "open: measured elsewhere than on an H200 or in other conditions, not measured, or reached while something was not "
    "measured that could be faster."
)


def run(options: argparse.Namespace) -> int:
    """Prints a line for every bar, and writes options.json if asked. Raises Problem when a file is something else."""
    if options.json:
        need_writable_file("--json", options.json)
    from dit_accel.tests.bench.bars.every import judge, of_one_machine, state

    tables: dict[str, list[dict[str, Any]]] = {}
    heads = []
    for path in options.files:
        name, head, rows = _table(path)
        heads.append({"file": path.name, **head})
        tables.setdefault(name, []).extend(rows)
    lines = judge({name: of_one_machine(rows) for name, rows in tables.items()})
    print(f"{show(lines)}\n\n{state(lines)}\n\n{NOTE}")
    if options.json:
        content = {"machine": heads[0]["machine"], "files": heads, "rows": lines}
        write_json(options.json, KIND, VERSION, content)
    return 0


def _table(path: Path) -> tuple[str, dict[str, Any], list[dict[str, Any]]]:
    """The table's name, its format and machine, its rows."""
    if path.stem == GATE:
        try:
            fit = read_fit(path)
        except ValueError as error:
            raise Problem(f"files: {error}") from error
        machine = {"device": fit.card, **fit.software}
        return GATE, {"format": FORMAT, "machine": machine}, [{"machine": fit.card, "costs": fit.costs._asdict()}]
    report = read(path, "files", *TABLES)
    kind, where = report["format"], report["machine"]
    own = kind == bench_attention.KIND and path.stem in (GROWTH, SHORT, HEAD64)
    return path.stem if own else TABLES[kind], {"format": kind, "machine": where}, report["rows"]


def show(lines: list[dict[str, Any]]) -> str:
    """A line for every bar: what, bar, measured, verdict, what that was measured on, why it is open."""
    columns = ("what", "bar", "measured", "verdict", "on", "why")
    return table(columns, [[line[column] for column in columns] for line in lines])
