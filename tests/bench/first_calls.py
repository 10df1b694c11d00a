"""The first attention calls on a new machine, from nothing: `python -m dit_accel.tests.bench first_calls`.

One call of each pattern, planning included, one after another in one process, with an empty cache of Triton; tokens of
a drawn clip, bf16 on a GPU. Without a GPU the calls run in the PyTorch reference and nothing is compiled. `--json FILE`
keeps the rows: seconds of a pattern's first call and of its second, kernels that were compiled so far.
"""

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dit_accel.accel.cli.row_file import Rows
from dit_accel.accel.cli.table import table
from dit_accel.tests.bench.bars.others import FIRST_CALLS as PATTERNS
from dit_accel.tests.bench.commands import bars as bench_bars


def measure(grid: tuple[int, int, int], heads: int, rows: Rows, device: str, backend: str) -> None:
    """Adds a row for each pattern; a kernel that two share counts for the first."""
    from dit_accel.accel.attention import executor
    from dit_accel.accel.attention.budget import Budget
    from dit_accel.accel.bench.case import Case
    from dit_accel.accel.bench.inputs import drawn_inputs
    from dit_accel.accel.bench.pattern_row import Planner
    from dit_accel.accel.bench.timing import once

    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        case = Case(drawn_inputs(grid, heads, 128), device=device, backend=backend, repeats=1)
        # The libraries of torch, which a model has used before.
        _ = case.dense
        for pattern in PATTERNS:
            planner = Planner(case, pattern, Budget(top_p=0.8))

            def call(planner=planner):
                return executor.execute(case.q, case.k, case.v, planner.first(), scale=case.scale, backend=backend)

            seconds, again = (once(call, case.device)[1] / 1000 for _ in range(2))
            row = {"pattern": pattern, "backend": backend, "seconds": seconds, "again_seconds": again}
            rows.add({**case.about(), **row, "kernels": len(list(Path(cache).rglob("*.cubin")))})


def show(rows: Sequence[dict]) -> str:
    columns = ("pattern", "backend", "seconds", "second call", "kernels so far")
    cells = [
        (row["pattern"], row["backend"], f"{row['seconds']:.2f}", f"{row['again_seconds']:.2f}", str(row["kernels"]))
        for row in rows
    ]
    return table(columns, cells)


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json after every row if asked."""
    import torch

    from dit_accel.accel.cli.machine import machine
    from dit_accel.accel.cli.needs import kernel_problem

    device = "cuda" if torch.cuda.is_available() else "cpu"
    reason = kernel_problem(torch.bfloat16, 128)
    rows = Rows(options.json, bench_bars.FIRST_CALLS, machine(reason), resume=False)
    measure(tuple(options.grid), options.heads, rows, device, "reference" if reason else "triton")
    print(show(rows.rows))
    return 0
