"""`linear`: a layer with 4-bit weights on every path, beside the plain layer and torch's 8-bit ones."""

from __future__ import annotations

import argparse
from typing import Any

from dit_accel.accel.cli.columns import Column, columns_of, milliseconds
from dit_accel.accel.cli.needs import need_writable_file
from dit_accel.accel.cli.row_file import Rows
from dit_accel.tests.bench.commands.speed_up import with_speed_up

KIND = "dit-accel/bench-linear"
NOTE = (
    "ms: medians (their number of runs is in the JSON), again: a second one. error: relative L2 of the very output "
    "that was timed against the plain layer in fp32; weights and inputs are drawn, so it compares paths and says "
    "nothing of a model. peak MB: beyond the layer, its input and its output. x plain: the plain layer's faster median "
    "over the slower one. torch fp8, torch int8: 8-bit weights and a scale for every row, nothing smoothed, inputs "
    "quantised within the call by the pack's kernels."
)
# Attention and feed-forward of Wan 2.1 14B at 480p, 81 frames.
GPU_SIZES, GPU_TOKENS = [(5120, 5120), (13824, 5120), (5120, 13824)], 32_760
CPU_SIZES, CPU_TOKENS = [(256, 256), (512, 256), (256, 512)], 64


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json after every row if asked. Raises Problem when something is missing.
    Returns 1 if a row failed."""
    if options.json:
        need_writable_file("--json", options.json)
    import torch

    from dit_accel.accel.bench.timing import default_repeats
    from dit_accel.accel.cli.machine import machine
    from dit_accel.accel.quant.compute import card_of
    from dit_accel.tests.bench.linear import EVERY, drawn_layer, rows_of

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    card = card_of(device)
    where = machine(card.triton)
    rows = Rows(options.json, KIND, where, resume=options.resume)
    print(f"{where['device']} ({card.chip}); torch {where['torch']}; {where['platform']}", flush=True)
    tokens = options.tokens or (GPU_TOKENS if gpu else CPU_TOKENS)
    for size in options.size or (GPU_SIZES if gpu else CPU_SIZES):
        layer = drawn_layer(*size, tokens, device, options.repeats or default_repeats(device.type))
        for row in rows_of(layer, EVERY, card, rows.of(layer.about())):
            rows.add(row)
            print(show([row]).splitlines()[-1], flush=True)
    print(f"\n{show(rows.rows)}\n\n{NOTE}")
    return int(any(row.get("failed") for row in rows.rows))


COLUMNS = (
    Column("out", "out"),
    Column("in", "in"),
    Column("tokens", "tokens"),
    Column("path", "path"),
    Column("error", "error", "{:.4f}".format),
    Column("ms", "ms", milliseconds),
    Column("again", "again_ms", milliseconds),
    Column("TFLOP/s", "flops", lambda value: f"{value / 1e12:.3g}"),
    Column("peak MB", "peak_bytes", lambda value: f"{value / 1e6:.0f}"),
    Column("x plain", "speed_up", "{:.2f}".format),
    Column("remark", "remark"),
)


def show(rows: list[dict[str, Any]]) -> str:
    """The rows under the columns that at least one of them fills."""
    return columns_of(COLUMNS, with_speed_up(rows, lambda row: row["path"] == "linear", _layer))


def _layer(row: dict[str, Any]) -> tuple:
    return row["out"], row["in"], row["tokens"], row.get("machine")
