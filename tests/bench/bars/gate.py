"""The bar of short clips: what the gate decides about each row, held against the times that were measured."""

from __future__ import annotations

import math

from dit_accel.accel.attention.cost.costs import Size, Terms, dense_work, predicted_costs, sparse_work
from dit_accel.accel.attention.cost.gate import MARGIN, MEASURED
from dit_accel.accel.attention.planners import PATTERNS
from dit_accel.accel.attention.planners.clusters import WARM_ITERATIONS
from dit_accel.tests.bench.bars.bar import Bar, Measured, Open, Row, Tables, joined, percent
from dit_accel.tests.bench.bars.rows import HALF, call_ms, faster, is_of, table_of

CHIP = "sm_90"  # the bar's
MOST = 0.02


def bars() -> list[Bar]:
    """Rows of the table `short`; `gate` is what `dit-accel bench gate` fitted to the card."""
    name = "short clips: what a call loses that the gate lets run sparse, {}"
    return [
        Bar(name.format("costs as shipped"), shipped, percent, most=MOST),
        Bar(name.format("costs measured on the card"), fitted, percent, most=MOST),
    ]


def shipped(tables: Tables) -> Measured:
    return slowest(tables, predicted_costs(CHIP), MARGIN)


def fitted(tables: Tables) -> Measured:
    (fit,) = table_of(tables, "gate")
    return slowest(tables, Terms(**fit["costs"]), MEASURED)


def slowest(tables: Tables, costs: Terms, margin: float) -> Measured:
    """The most by which a later call is slower than dense attention as torch runs it; 0 where the gate keeps it so."""
    short = table_of(tables, "short")
    rows = [row for row in short if row["valid"] and "plan_ms" in row]
    if not rows:
        raise Open(joined(*(f"{row['pattern']} {row['remark']}" for row in short)))
    losses = {index: 0.0 if stays_dense(row, costs, margin) else loss(row) for index, row in enumerate(rows)}
    index = max(losses, key=losses.__getitem__)
    row, dense = rows[index], sum(stays_dense(row, costs, margin) for row in rows)
    on = f"{dense} of {len(rows)} calls stay dense; {row['tokens']:,} tokens, {row['pattern']}, {row['formats']}"
    missing = joined(*(f"{row['pattern']} {row['remark']}" for row in short if row.get("failed")))
    return Measured(losses[index], on, row["machine"], missing=missing)


def stays_dense(row: Row, costs: Terms, margin: float) -> bool:
    """What the gate decides of a later call, whose density it has learnt."""
    size = Size(row["heads"], row["tokens"], math.prod(row["grid"]), row["head_dim"])
    bits = 16 if is_of(HALF, row) else 8
    work = sparse_work(size, PATTERNS[row["pattern"]].planning, row["density"], bits, WARM_ITERATIONS)
    return work.milliseconds(costs) > margin * dense_work(size).milliseconds(costs)


def loss(row: Row) -> float:
    """Of the sparse call over the dense one, below 0 where it wins."""
    return call_ms(row) / faster(row, "dense") - 1
