"""The bars of growth: the executor with the kept pairs, planning with the tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from dit_accel.tests.bench.bars.bar import Bar, Measured, Row, Tables, percent
from dit_accel.tests.bench.bars.rows import HALF, ours, slower, table_of

PATTERNS = ("svg2", "pooled", "tree")
LENGTHS = (16_000, 33_000, 76_000, 119_000, 200_000)
NEAR = 0.1  # how far from such a length inputs may be
EXECUTOR, PLANNING = 0.1, 0.25


def bars() -> list[Bar]:
    """Rows of the table `growth`: one density, the same heads, many lengths."""
    result = []
    for pattern in PATTERNS:
        name = f"{pattern}: executor time for each kept pair, against that of the median length"
        result.append(Bar(name, partial(spread, pattern, kernel_of_a_pair), percent, most=EXECUTOR))
    for pattern in PATTERNS:
        name = f"{pattern}: planning time for each token, against that of the median length"
        result.append(Bar(name, partial(spread, pattern, planning_of_a_token), percent, most=PLANNING))
    return result


def kernel_of_a_pair(row: Row) -> float:
    """Milliseconds of the kernel for a pair of a query and a key that was kept."""
    return slower(row, "kernel") / (row["density"] * row["tokens"] ** 2 * row["heads"])


def planning_of_a_token(row: Row) -> float:
    """Milliseconds of a later call's planning for a token of a head."""
    return slower(row, "plan") / (row["tokens"] * row["heads"])


def spread(pattern: str, cost: Callable[[Row], float], tables: Tables) -> Measured:
    """The largest part by which a length's cost differs from that of the median length, either way."""
    rows = sorted(ours(table_of(tables, "growth"), pattern, HALF), key=lambda row: row["tokens"])
    middle = cost(rows[len(rows) // 2])
    parts = {row["tokens"]: cost(row) / middle for row in rows}
    missing = [length for length in LENGTHS if not any(abs(tokens / length - 1) <= NEAR for tokens in parts)]
    return Measured(
        max(abs(part - 1) for part in parts.values()),
        ", ".join(f"{part:.2f} at {tokens:,}" for tokens, part in parts.items()),
        rows[0]["machine"],
        f"no row near {', '.join(f'{length:,}' for length in missing)} tokens" if missing else "",
    )
