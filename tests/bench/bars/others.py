"""The bars beside attention: first calls, checks on the device, linears, autoencoders, whole models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dit_accel.tests.bench.bars.bar import Bar, Measured, Open, Row, Tables, joined, times
from dit_accel.tests.bench.bars.rows import faster, slower, table_of
from dit_accel.tests.bench.dcae import DECODE, DIFFUSERS, WHOLE
from dit_accel.tests.bench.linear import PATHS, PLAIN
from dit_accel.tests.bench.linear_peers import PEERS

FIRST_CALLS = ("svg2", "svg_ear", "tree")
SECONDS = 10.0
GPU_TESTS, MEMCHECK, RACECHECK = "gpu tests", "memcheck", "racecheck"
PIXELS = (1024, 2048, 4096)


def bars() -> list[Bar]:
    """Rows of the tables `first_calls`, `checks`, `linear`, `dcae` and `forward`."""
    result = [
        Bar(
            f"first calls of {', '.join(FIRST_CALLS)}, compiling included", first_calls, "{:.1f} s".format, most=SECONDS
        )
    ]
    for check, name in (
        (GPU_TESTS, "files of gpu tests that fail"),
        (MEMCHECK, "errors that compute-sanitizer's memcheck finds"),
        (RACECHECK, "hazards that compute-sanitizer's racecheck finds"),
    ):
        result.append(Bar(name, partial(problems, check), "{:.0f}".format, most=0))
    for peer in (PLAIN, *PEERS):
        name = "torch bf16" if peer == PLAIN else peer
        result.append(Bar(f"4-bit linear, its fastest path, against {name}", partial(linear, peer), times))
    for pixels in PIXELS:
        result.append(Bar(f"DC-AE decode against diffusers, {pixels} pixels", partial(decode, pixels), times))
    for scope in ("block", "forward"):
        result.append(Bar(f"a {scope} of Wan 14B, sparse against dense", partial(whole_model, scope), times))
    return result


def first_calls(tables: Tables) -> Measured:
    """Seconds from an empty cache, one call after the other in one process."""
    rows = {row["pattern"]: row for row in table_of(tables, "first_calls")}
    missing = joined(*(f"no first call of {pattern}" for pattern in FIRST_CALLS if pattern not in rows))
    known = [rows[pattern] for pattern in FIRST_CALLS if pattern in rows]
    if not known:
        raise Open(missing)
    on = ", ".join(f"{row['pattern']} {row['seconds']:.1f} s" for row in known)
    strange = "" if all(row["backend"] == "triton" for row in known) else "nothing was compiled"
    return Measured(sum(row["seconds"] for row in known), on, known[0]["machine"], strange, missing)


def problems(check: str, tables: Tables) -> Measured:
    """How many a check found. Raises Open where it did not run, or not to its end."""
    rows = [row for row in table_of(tables, "checks") if row["check"] == check]
    if not rows:
        raise Open(f"{check}: no row")
    on = joined(*(f"{row['what']} {row['remark']}" for row in rows if row["problems"] != 0))
    unknown = on if any(row["problems"] is None for row in rows) else ""
    count = sum(row["problems"] or 0 for row in rows)
    if unknown and not count:
        raise Open(unknown)
    left = rows[0]["of"] - len(rows)
    missing = joined(unknown, f"{left} of {rows[0]['of']} did not run" if left else "")
    return Measured(count, on or f"{len(rows)} of {rows[0]['of']}", rows[0]["machine"], missing=missing)


def linear(peer: str, tables: Tables) -> Measured:
    """The peer's time over that of our fastest path: the lowest of all layers."""
    layers: dict[tuple, list[Row]] = {}
    for row in table_of(tables, "linear"):
        layers.setdefault((row["out"], row["in"], row["tokens"]), []).append(row)
    return min((_linear(peer, rows) for rows in layers.values()), key=lambda measured: measured.value)


def _linear(peer: str, rows: Sequence[Row]) -> Measured:
    valid = {row["path"]: row for row in rows if row["valid"]}
    mine = [row for path, row in valid.items() if path in PATHS]
    if peer not in valid or not mine:
        names = [peer] if mine else PATHS
        raise Open(
            joined(*(f"{row['path']} {row['remark']}" for row in rows if row["path"] in names)) or f"{peer}: no row"
        )
    best = min(mine, key=_slow)
    on = f"{best['out']}x{best['in']}, {best['tokens']:,} tokens, {best['path']}"
    return Measured(_fast(valid[peer]) / _slow(best), on, best["machine"])


def decode(pixels: int, tables: Tables) -> Measured:
    """diffusers' time over ours, both at once."""
    rows = {row["way"]: row for row in table_of(tables, "dcae") if (row["part"], row["pixels"]) == (DECODE, pixels)}
    for way in (WHOLE, DIFFUSERS):
        if way not in rows or not rows[way]["valid"]:
            raise Open(f"{way} {rows[way]['remark'] if way in rows else f'has no row of {pixels} pixels'}")
    mine = rows[WHOLE]
    return Measured(_fast(rows[DIFFUSERS]) / _slow(mine), f"{mine['variant']}, {mine['dtype']}", mine["machine"])


def whole_model(scope: str, tables: Tables) -> Measured:
    """A dense evaluation's time over the fastest sparse one's; scope: a block or a whole forward."""
    rows = [row for row in table_of(tables, "forward") if row["what"] == scope]
    valid = [row for row in rows if row["valid"]]
    if not valid:
        raise Open(joined(*(f"{row['pattern']} {row['remark']}" for row in rows)) or f"{scope}: no row")
    gain, row = max(((faster(row, "dense") / slower(row, "sparse"), row) for row in valid), key=lambda pair: pair[0])
    on = f"{row['layers']} layers, {row['tokens']:,} tokens, {row['pattern']}, {row['precision']}, {row['asked']}"
    return Measured(gain, on, row["machine"])


def _fast(row: Row) -> float:
    return min(row["ms"], row["again_ms"])


def _slow(row: Row) -> float:
    return max(row["ms"], row["again_ms"])
