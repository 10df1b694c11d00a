"""The bars of one attention call: the executor, the whole call, sol_attn at equal error, memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

from dit_accel.tests.bench.bars.bar import Bar, Measured, Open, Row, Tables, percent, times
from dit_accel.tests.bench.bars.rows import (
    ANY,
    DENSE_8,
    DENSE_16,
    EIGHT,
    HALF,
    INT8_FP8,
    INT8_HALF,
    at_size,
    by_inputs,
    call_ms,
    faster,
    fastest,
    on,
    ours,
    slower,
    table_of,
    why_not,
)

CLUSTERS = ("svg2", "svg_ear")  # blocks of the sizes that SVG2's clusters have
BLOCKS = ("pooled", "window", "tree")  # of 128 queries and 64 keys
PATTERNS = CLUSTERS + BLOCKS
DENSITY = 0.25


def bars() -> list[Bar]:
    """Rows of the table `attention`, and of `head64` for the same with heads of 64 channels."""
    result = []
    for pattern in PATTERNS:
        least = 0.65 if pattern in CLUSTERS else 0.85
        name = f"{pattern}, 16-bit executor: useful FLOP/s of the best 16-bit dense"
        result.append(Bar(name, _on_attention(executor, min, pattern), percent, least))
    for pattern in PATTERNS:
        for kind, least in ((INT8_HALF, 1.15), (INT8_FP8, 1.35)):
            name = f"{pattern}, {kind}: executor against 16-bit"
            result.append(Bar(name, _on_attention(eight_bits, min, pattern, kind), times, least))
    for pattern in PATTERNS:
        for kind, names, peers, least in (
            (HALF, "16-bit", DENSE_16, 2.4),
            (EIGHT, "16-bit", DENSE_16, 3.2),
            (EIGHT, "8-bit", DENSE_8, 2.0),
        ):
            name = f"{pattern}, {kind}: whole call at density {DENSITY} against the best {names} dense"
            result.append(Bar(name, _on_attention(whole_call, min, pattern, kind, peers), times, least))
    for pattern in PATTERNS:
        name = f"{pattern}: whole call against sol_attn at equal error"
        result.append(Bar(name, _on_attention(equal_error, min, pattern), times, 1.3))
    for pattern in PATTERNS:
        for kind, most in ((HALF, 1.3), (EIGHT, 0.8)):
            name = f"{pattern}, {kind}: extra peak memory over q + k + v"
            result.append(Bar(name, _on_attention(memory, max, pattern, kind), times, most=most))
    for pattern in PATTERNS:
        for kind in (HALF, EIGHT):
            name = f"{pattern}, {kind}, heads of 64: useful FLOP/s of the best 16-bit dense"
            result.append(Bar(name, partial(heads_of_64, pattern, kind), percent))
    return result


def _on_attention(measure: Callable, worst: Callable, *chosen) -> Callable[[Tables], Measured]:
    """measure(rows of one inputs, *chosen) over the inputs of the bars."""
    return lambda tables: at_size(table_of(tables, "attention"), lambda rows: measure(rows, *chosen), worst)


def executor(rows: Sequence[Row], pattern: str, kind: str = HALF) -> Measured:
    """FLOP/s that go into kept pairs, over those of the fastest 16-bit dense row: the lowest of all densities."""
    dense = fastest(rows, DENSE_16)

    def share(row: Row) -> float:
        return row["density"] * dense.ms / slower(row, "kernel")

    row = min(ours(rows, pattern, kind), key=share)
    return Measured(share(row), f"{on(row)}, {dense.name}", row["machine"], missing=dense.missing)


def eight_bits(rows: Sequence[Row], pattern: str, kind: str) -> Measured:
    """The kernel of the same plan in 16 bits over that in 8: the lowest of all densities that have both."""
    half = {row["asked"]: row for row in ours(rows, pattern, HALF)}
    pairs = [(half[row["asked"]], row) for row in ours(rows, pattern, kind) if row["asked"] in half]
    if not pairs:
        raise Open(f"{pattern}: no density with rows of both")
    speed_up, row = min(((faster(a, "kernel") / slower(b, "kernel"), b) for a, b in pairs), key=lambda pair: pair[0])
    return Measured(speed_up, on(row), row["machine"])


def whole_call(rows: Sequence[Row], pattern: str, kind: str, peers: Sequence[str]) -> Measured:
    """Plan and kernel of our fastest row of a kind at DENSITY, against the fastest of the peers."""
    row = min(ours(rows, pattern, kind, DENSITY), key=call_ms)
    peer = fastest(rows, peers)
    return Measured(
        peer.ms / call_ms(row), f"{on(row)}, {row['formats']}, {peer.name}", row["machine"], "", peer.missing
    )


def equal_error(rows: Sequence[Row], pattern: str) -> Measured:
    """sol_attn's time over ours at its error: ours is interpolated over our densities, in the formats that are fastest
    there. The lowest of sol_attn's densities whose error lies among ours."""
    theirs = [row for row in rows if row["pattern"] == "sol_attn" and row["valid"]]
    if not theirs:
        raise Open(why_not(rows, "sol_attn"))
    curves: dict[str, list[tuple[float, float]]] = {}
    for row in ours(rows, pattern, ANY):
        curves.setdefault(row["formats"], []).append((row["error"], call_ms(row)))
    speed_ups = []
    for row in theirs:
        times_there = [ms for curve in curves.values() if (ms := interpolated(curve, row["error"])) is not None]
        if times_there:
            speed_ups.append((faster(row, "kernel") / min(times_there), row))
    if not speed_ups:
        points = [error for curve in curves.values() for error, _ in curve]
        errors = ", ".join(f"{row['error']:.4f}" for row in theirs)
        raise Open(f"sol_attn's error ({errors}) lies outside of {pattern}'s ({min(points):.4f} to {max(points):.4f})")
    speed_up, row = min(speed_ups, key=lambda pair: pair[0])
    return Measured(speed_up, f"{on(row)}, error {row['error']:.4f}", row["machine"])


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float | None:
    """y at x = `at` on straight lines through the logarithms of (x, y); None outside of the points."""
    points = sorted(set(points))
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= at <= right:
            part = math.log(at / left) / math.log(right / left) if right > left else 0.0
            return math.exp(math.log(low) + part * math.log(high / low))
    return None


def memory(rows: Sequence[Row], pattern: str, kind: str) -> Measured:
    """What planning and attention take at their peak beyond q, k, v and the output, over q, k and v: the most of all
    densities."""
    measured = [row for row in ours(rows, pattern, kind) if row["peak_bytes"] is not None]
    if not measured:
        raise Open("torch counts memory on GPUs only")
    row = max(measured, key=lambda row: row["peak_bytes"])
    size = {"float32": 4}.get(row["dtype"], 2)
    inputs = 3 * row["tokens"] * row["heads"] * row["head_dim"] * size
    return Measured(row["peak_bytes"] / inputs, on(row), row["machine"])


def heads_of_64(pattern: str, kind: str, tables: Tables) -> Measured:
    """As `executor`, of the table `head64`, of the inputs where it is lowest."""
    of_inputs = (executor(rows, pattern, kind) for rows in by_inputs(table_of(tables, "head64")))
    return min(of_inputs, key=lambda measured: measured.value)
