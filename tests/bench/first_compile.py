"""How long Triton compiles in the first run on a new machine: `python -m dit_accel.tests.bench first_compile sm_90`.

Every kernel that a sampling run launches (bf16, head dimension 128; svg2, then svg_ear, then tree), compiled one after
another for the chip named, from an empty cache, with no GPU. `--json FILE` keeps the rows.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable

from dit_accel.accel.cli.machine import machine
from dit_accel.accel.cli.table import table

# Whether there are trees, a tail, and blocks that fill tall chunks.
PATTERNS = {"svg2": (False, False, False), "svg_ear": (False, True, False), "tree": (True, True, True)}


def measure(chip: str) -> list[dict]:
    """A row for each pattern: kernels compiled and seconds; a kernel that both have counts for the first."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {"TRITON_CACHE_DIR": cache, "TRITON_INTERPRET": "0"}
        import torch
        import triton

        from dit_accel.tests.kernels import compile_for

        compile_for.compile_as(chip)

        def run(trees: bool, tail: bool, tall: bool) -> None:
            if trees:
                compile_for.call_trees(torch.bfloat16, 128)
            compile_for.attend(torch.bfloat16, 128, False, tail, tall, None)
            compile_for.call_planning(torch.bfloat16, 128)

        rows = []
        for pattern, kind in PATTERNS.items():
            seconds = timed(lambda kind=kind: run(*kind))
            kernels = {kernel.hash for kernel in compile_for.compiled}
            row = {"chip": chip, "pattern": pattern, "kernels": len(kernels), "seconds": seconds}
            rows.append(row | {"triton": triton.__version__})
    return rows


def timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def show(rows: list[dict]) -> str:
    return table(
        ("chip", "pattern", "kernels so far", "seconds"),
        [(row["chip"], row["pattern"], str(row["kernels"]), f"{row['seconds']:.1f}") for row in rows],
    )


def run(options: argparse.Namespace) -> int:
    """Prints the table, and adds its rows to those of options.json if asked."""
    rows = measure(options.chip)
    print(show(rows))
    if options.json:
        earlier = json.loads(options.json.read_text())["rows"] if options.json.exists() else []
        content = {"machine": machine("no GPU"), "rows": earlier + rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0
