"""`dit-accel bench attention`: patterns, densities and formats on captures, with other people's attention beside."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from .bench_inputs import need_inputs
from .checks import REFERENCE_NOTE, kernel_problem, need_patterns, need_writable_file
from .rows import Rows
from .table import table

if TYPE_CHECKING:
    from ..bench.case import Case
    from ..bench.inputs import Inputs

KIND = "dit-accel/bench-attention"
NOTE = (
    "ms: medians (their number of runs is in the JSON), again: a second one. first plan: without a warm start. error: "
    "relative L2 of the very output that was timed against fp32 dense attention. TFLOP/s: of pairs that were kept. "
    "peak MB: beyond q, k, v and the output, planning included. x fastest: the faster median of the fastest dense row "
    "of the same inputs, in any format, over the slower medians of plan and kernel."
)


class Session(NamedTuple):
    """What every bench on captures starts with."""

    patterns: list[str]
    cases: Iterable[Case]
    rows: Rows
    no_kernel_because: str


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json after every row if asked. Raises Problem when something is missing.
    Returns 1 if a row of ours failed."""
    session = start(options, KIND)
    from ..attention.budget import Budget
    from ..bench.attention import formats_of
    from ..bench.sweep import Ask, rows_of

    if options.density:
        asks = [Ask(density, Budget()) for density in options.density]
    else:
        asks = [Ask(None, Budget(top_p=options.top_p, max_density=options.max_density))]
    for case in session.cases:
        formats = []
        if "16-bit" in options.precision:
            formats.append(None)
        if "8-bit" in options.precision:
            formats += formats_of(case.device)
        done = session.rows.of(case.about())
        for row in rows_of(case, session.patterns, asks, formats, baselines=not options.no_baselines, done=done):
            session.rows.add(row)
            print(_progress(row), flush=True)
    rows = session.rows.rows
    print(f"\n{show(rows)}\n\n{NOTE}")
    if session.no_kernel_because:
        print(REFERENCE_NOTE.format(reason=session.no_kernel_because))
    return int(any(row.get("failed") for row in rows))


def start(options: argparse.Namespace, kind: str) -> Session:
    """Checks what was asked for, and prints where the bench runs. Raises Problem when something is missing."""
    if options.json:
        need_writable_file("--json", options.json)
    make_inputs, head_dim = need_inputs(options)
    import torch

    from ..attention.planners import PATTERNS
    from ..bench.case import Case
    from ..bench.timing import default_repeats
    from .machine import machine

    patterns = options.pattern or list(PATTERNS)
    need_patterns(patterns)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    reason = kernel_problem(torch.bfloat16 if device == "cuda" else torch.float32, head_dim)
    where = machine(reason)
    rows = Rows(options.json, kind, where, resume=options.resume)
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)

    def make_case(inputs: Inputs) -> Case:
        backend = "reference" if reason else "triton"
        return Case(inputs, device=device, backend=backend, repeats=options.repeats or default_repeats(device))

    return Session(patterns, map(make_case, make_inputs), rows, reason)


def _progress(row: dict[str, Any]) -> str:
    cells = (column.text(row) for column in COLUMNS)
    return "  ".join(cell for cell in cells if cell)


class Column(NamedTuple):
    """header, and the text of a row's cell: that of the field, empty for a row without it."""

    header: str
    field: str
    form: Callable[[Any], str] = str

    def text(self, row: dict[str, Any]) -> str:
        value = row.get(self.field)
        return "" if value is None else self.form(value)


def milliseconds(value: float) -> str:
    return f"{value:.2f}"


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
    Column("x fastest", "speed_up", "{:.2f}".format),
    Column("remark", "remark"),
)


def show(rows: list[dict[str, Any]]) -> str:
    """The measured rows under the columns that at least one of them fills, and below what could not be measured."""
    fastest = fastest_dense(rows)
    measured = []
    for row in rows:
        if "error" in row:
            dense = fastest.get(row["inputs_sha256"])
            speed_up = {"speed_up": dense / _slowest(row)} if dense and "plan_again_ms" in row else {}
            measured.append({**row, **speed_up})
    parts = [columns_of(COLUMNS, measured)] if measured else []
    others: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        if "error" not in row:
            others.setdefault((row["pattern"], row["asked"], row["remark"]), []).append(row["inputs"])
    if others:
        cells = [(name, asked, str(len(inputs)), remark) for (name, asked, remark), inputs in others.items()]
        parts.append(table(("not measured", "asked", "inputs", "why"), cells))
    return "\n\n".join(parts)


def _slowest(row: dict[str, Any]) -> float:
    return max(row["plan_ms"], row["plan_again_ms"]) + max(row["kernel_ms"], row["kernel_again_ms"])


def columns_of(columns: Iterable[Column], rows: list[dict[str, Any]]) -> str:
    used = [column for column in columns if any(column.text(row) for row in rows)]
    return table([column.header for column in used], [[column.text(row) for column in used] for row in rows])


def fastest_dense(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Kernel milliseconds of the fastest dense attention that was measured on each inputs, by their hash."""
    fastest: dict[str, float] = {}
    for row in rows:
        if row.get("asked") == "everything" and row["valid"]:
            sha256 = row["inputs_sha256"]
            fastest[sha256] = min(row["kernel_ms"], row["kernel_again_ms"], fastest.get(sha256, float("inf")))
    return fastest
