"""`dit-accel bench show`: the tables of JSON files that the benches of speed wrote."""

from __future__ import annotations

import argparse

from . import bench, bench_dcae, bench_forward, bench_linear, bench_planning
from .rows import read

SHOW = {one.KIND: (one.show, one.NOTE) for one in (bench, bench_planning, bench_linear, bench_forward, bench_dcae)}


def run(options: argparse.Namespace) -> int:
    """Prints every file's table under its name and machine. Raises Problem when a file is something else."""
    for path in options.files:
        report = read(path, "files", *SHOW)
        show, note = SHOW[report["format"]]
        for machine in dict.fromkeys(row["machine"] for row in report["rows"]):
            rows = [row for row in report["rows"] if row["machine"] == machine]
            print(f"{path.name}: {machine}\n\n{show(rows)}\n\n{note}\n")
    return 0
