"""`show`: the tables of JSON files that the benches of speed wrote."""

from __future__ import annotations

import argparse

from dit_accel.accel.cli import bench_attention
from dit_accel.accel.cli.row_file import read, shown
from dit_accel.tests.bench.commands import dcae, forward, linear, planning

SHOW = {bench.KIND: (bench.show, bench.NOTE) for bench in (bench_attention, planning, linear, forward, dcae)}


def run(options: argparse.Namespace) -> int:
    """Prints every file's table under its name and machine. Raises Problem when a file is something else."""
    for path in options.files:
        report = read(path, "files", *SHOW)
        show, note = SHOW[report["format"]]
        for machine in dict.fromkeys(row["machine"] for row in report["rows"]):
            rows = [row for row in report["rows"] if row["machine"] == machine]
            print(f"{path.name}: {machine}\n\n{shown(show, rows, f'files: {path}')}\n\n{note}\n")
    return 0
