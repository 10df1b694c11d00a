"""`dcae`: an image autoencoder at once and in strips, beside diffusers'."""

from __future__ import annotations

import argparse
from typing import Any

from dit_accel.accel.cli import Problem
from dit_accel.accel.cli.columns import Column, columns_of, milliseconds
from dit_accel.accel.cli.needs import kernel_problem, need_writable_file
from dit_accel.accel.cli.row_file import Rows
from dit_accel.tests.bench.commands.speed_up import with_speed_up

KIND = "dit-accel/bench-dcae"
NOTE = (
    "ms: medians (their number of runs is in the JSON), again: a second one. error: relative L2 of the very output "
    "that was timed against fp32 in strips; weights and pictures are drawn, so it compares ways and says nothing of a "
    "picture. peak MB: beyond weights and input, the result included; on a GPU with the convolutions' workspace, "
    "elsewhere of tensors alone. predicted MB: what strips are chosen by. x diffusers: diffusers' faster median at "
    "once over the slower one."
)
GPU_PIXELS, CPU_PIXELS = [1024, 2048, 4096], [512, 1024]


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json after every row if asked. Raises Problem when something is missing.
    Returns 1 if a row failed."""
    if options.json:
        need_writable_file("--json", options.json)
    import torch

    from dit_accel.accel.bench.timing import default_repeats
    from dit_accel.accel.cli.machine import machine
    from dit_accel.accel.dcae.config import CONFIGS
    from dit_accel.tests.bench.dcae import drawn, rows_of

    if options.variant not in CONFIGS:
        raise Problem(f"--variant: expected one of {', '.join(CONFIGS)}, found {options.variant}")
    config = CONFIGS[options.variant]
    gpu = torch.cuda.is_available()
    sides = options.pixels or (GPU_PIXELS if gpu else CPU_PIXELS)
    for side in sides:
        if side % config.factor:
            raise Problem(f"--pixels: expected multiples of {config.factor}, found {side}")
    device = torch.device("cuda" if gpu else "cpu")
    dtype = torch.bfloat16 if gpu else torch.float32
    where = machine(kernel_problem(dtype, config.head_dim))
    rows = Rows(options.json, KIND, where, resume=options.resume)
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)
    case = drawn(config, device, dtype, options.rows, options.repeats or default_repeats(device.type))
    for side in sides:
        for row in rows_of(case, side, rows.of({})):
            rows.add(row)
            print(show([row]).splitlines()[-1], flush=True)
    print(f"\n{show(rows.rows)}\n\n{NOTE}")
    return int(any(row.get("failed") for row in rows.rows))


def _megabytes(value: int) -> str:
    return f"{value / 1e6:.0f}"


COLUMNS = (
    Column("variant", "variant"),
    Column("part", "part"),
    Column("pixels", "pixels"),
    Column("dtype", "dtype"),
    Column("way", "way"),
    Column("error", "error", "{:.1e}".format),
    Column("ms", "ms", milliseconds),
    Column("again", "again_ms", milliseconds),
    Column("peak MB", "peak_bytes", _megabytes),
    Column("predicted MB", "predicted_bytes", _megabytes),
    Column("x diffusers", "speed_up", "{:.2f}".format),
    Column("remark", "remark"),
)


def show(rows: list[dict[str, Any]]) -> str:
    """The rows under the columns that at least one of them fills."""
    return columns_of(COLUMNS, with_speed_up(rows, lambda row: row["way"] == "diffusers", _picture))


def _picture(row: dict[str, Any]) -> tuple:
    return row["variant"], row["part"], row["pixels"], row["dtype"], row.get("machine")
