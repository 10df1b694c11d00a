"""`dit-accel bench attention`: patterns, densities and formats on attention inputs, beside dense attention."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .bench_session import start
from .columns import Column, columns_of, milliseconds
from .needs import TORCH_NOTE
from .row_file import shown
from .table import table

if TYPE_CHECKING:
    from ..bench.sweep import Peers

KIND = "dit-accel/bench-attention"
NOTE = (
    "ms: medians (their number of runs is in the JSON), again: a second one. first plan: without a warm start. error: "
    "relative L2 of the very output that was timed against fp32 dense attention. TFLOP/s: of pairs that were kept. "
    "peak MB: beyond q, k, v and the output, planning included. x dense: the faster median of torch's "
    "dense attention, or of a faster dense row of the same inputs, over the slower medians of plan and kernel."
)


def run(options: argparse.Namespace, make_peers: Callable[[], Peers] | None = None) -> int:
    """Prints the table, and writes options.json after every row if asked. make_peers: other people's attention, to be
    measured beside ours. Raises Problem when something is missing. Returns 1 if a row of ours failed."""
    session = start(options, KIND)
    # Earlier rows stand in the table at the end: what it cannot show is said before hours of measuring.
    shown(show, session.rows.rows, f"--resume: {options.json}")
    from ..attention.budget import Budget
    from ..bench.pattern_row import formats_of
    from ..bench.sweep import NO_PEERS, Target, rows_of

    peers = make_peers() if make_peers else NO_PEERS

    if options.density:
        targets = [Target(density, Budget()) for density in options.density]
    else:
        targets = [Target(None, Budget(top_p=options.top_p, max_density=options.max_density))]
    for case in session.cases:
        formats = []
        if "16-bit" in options.precision:
            formats.append(None)
        if "8-bit" in options.precision:
            formats += formats_of(case.device)
        done = session.rows.of(case.about())
        for row in rows_of(case, session.patterns, targets, formats, peers=peers, done=done):
            session.rows.add(row)
            print(_progress(row), flush=True)
    rows = session.rows.rows
    print(f"\n{show(rows)}\n\n{NOTE}")
    if session.no_kernel_because:
        print(TORCH_NOTE.format(reason=session.no_kernel_because))
    return int(any(row.get("failed") for row in rows))


def _progress(row: dict[str, Any]) -> str:
    cells = (column.text(row) for column in COLUMNS)
    return "  ".join(cell for cell in cells if cell)


COLUMNS = (
    Column("inputs", "inputs"),
    Column("tokens", "tokens"),
    Column("heads", "heads"),
    Column("pattern", "pattern"),
    Column("formats", "formats"),
    Column("asked", "asked"),
    Column("backend", "backend"),
    Column("density", "density", "{:.3f}".format),
    Column("error", "error", "{:.4f}".format),
    Column("first plan ms", "first_plan_ms", milliseconds),
    Column("plan ms", "plan_ms", milliseconds),
    Column("again", "plan_again_ms", milliseconds),
    Column("kernel ms", "kernel_ms", milliseconds),
    Column("again", "kernel_again_ms", milliseconds),
    Column("dense ms", "dense_ms", milliseconds),
    Column("dense error", "dense_error", "{:.1e}".format),
    Column("TFLOP/s", "useful_flops", lambda value: f"{value / 1e12:.3g}"),
    Column("peak MB", "peak_bytes", lambda value: f"{value / 1e6:.0f}"),
    Column("x dense", "speed_up", "{:.2f}".format),
    Column("remark", "remark"),
)


def show(rows: list[dict[str, Any]]) -> str:
    """The measured rows under the columns that at least one of them fills, and below what could not be measured."""
    fastest = fastest_dense(rows)
    measured = []
    for row in rows:
        if "error" in row:
            measured.append({**row, **_speed_up(row, fastest.get(row["inputs_sha256"], math.inf))})
    parts = [columns_of(COLUMNS, measured)] if measured else []
    failures: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if "error" not in row:
            failures.setdefault((row["pattern"], row["asked"], row["remark"]), []).append(row["inputs"])
    if failures:
        cells = [(name, target, str(len(inputs)), remark) for (name, target, remark), inputs in failures.items()]
        parts.append(table(("not measured", "asked", "inputs", "why"), cells))
    return "\n\n".join(parts)


def _speed_up(row: dict[str, Any], fastest: float) -> dict[str, float]:
    """Nothing for a row of a peer."""
    return {"speed_up": speed_up(row, fastest)} if "plan_again_ms" in row else {}


def speed_up(row: dict[str, Any], fastest: float = math.inf) -> float:
    """Over the faster of torch's own dense attention and the `fastest` dense row, planning included."""
    dense = min(fastest, row["dense_ms"], row["dense_again_ms"])
    slowest = max(row["plan_ms"], row["plan_again_ms"]) + max(row["kernel_ms"], row["kernel_again_ms"])
    return dense / slowest


def fastest_dense(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Kernel milliseconds of the fastest dense attention that was measured on each inputs, by their hash."""
    fastest: dict[str, float] = {}
    for row in rows:
        if row.get("asked") == "everything" and row["valid"]:
            sha256 = row["inputs_sha256"]
            fastest[sha256] = min(row["kernel_ms"], row["kernel_again_ms"], fastest.get(sha256, float("inf")))
    return fastest
