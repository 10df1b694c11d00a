"""`forward`: a block and a whole forward of Wan's shape, dense and sparse."""

from __future__ import annotations

import argparse
from typing import Any

from dit_accel.accel.cli import Problem
from dit_accel.accel.cli.columns import Column, columns_of, milliseconds
from dit_accel.accel.cli.needs import (
    TORCH_NOTE,
    kernel_problem,
    need_comfyui_folder,
    need_patterns,
    need_writable_file,
    needed_by,
)
from dit_accel.accel.cli.row_file import Rows

KIND = "dit-accel/bench-forward"
NOTE = (
    "ms: of one evaluation of ComfyUI's own Wan model, medians (their number of runs is in the JSON), again: a second "
    "one; a block is a model of one layer, with embeddings and head. dense: without the pack; attention: what video "
    "self-attention takes of that. error: relative L2 of the noise that was found against the dense evaluation. peak "
    "GB: beyond weights, input and output. x dense: the dense evaluation's faster median over the slower one. Weights "
    "are drawn with the statistics of a trained model, and attention with such weights is spread wide: the errors say "
    "nothing of a trained model. The guard is off."
)
GPU = {"dim": 5120, "heads": 40, "layers": [1, 40], "grid": (21, 45, 80)}
CPU = {"dim": 256, "heads": 2, "layers": [1, 2], "grid": (4, 8, 10)}
# Evaluations of a block in each median on a GPU; a forward of 40 layers is its own average.
GPU_REPEATS = 20


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json after every row if asked. Raises Problem when something is missing.
    Returns 1 if a row failed."""
    if options.json:
        need_writable_file("--json", options.json)
    comfyui = need_comfyui_folder()
    with needed_by(comfyui):
        from dit_accel.accel.headless.embedded import import_models

        import_models(comfyui)
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    import torch

    from dit_accel.accel.attention.budget import Budget
    from dit_accel.accel.bench.sweep import Target
    from dit_accel.accel.bench.timing import default_repeats
    from dit_accel.accel.cli.machine import machine
    from dit_accel.accel.headless.drawn_wan import DrawnWan, WanShape
    from dit_accel.tests.bench.forward import Case, drawn_latent, rows_of, target_of

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    usual = GPU if device.type == "cuda" else CPU
    dim, heads = options.dim or usual["dim"], options.heads or usual["heads"]
    if dim not in (64 * heads, 128 * heads):
        raise Problem(f"--dim: expected 64 or 128 channels for each of {heads} heads, found {dim}")
    patterns = options.pattern
    need_patterns(patterns)
    if options.top_p is None:
        targets = [target_of(density) for density in options.density]
    else:
        targets = [Target(None, Budget(top_p=options.top_p, max_density=options.max_density))]
    reason = kernel_problem(dtype, dim // heads)
    where = machine(reason)
    rows = Rows(options.json, KIND, where, resume=options.resume)
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)
    words = {"dim": dim, "heads": heads, "dtype": str(dtype).removeprefix("torch.")}
    for grid in options.grid or [usual["grid"]]:
        for layers in options.layers or usual["layers"]:
            shape = WanShape(dim, heads, layers)
            case = Case(
                lambda shape=shape, grid=grid: DrawnWan(shape, drawn_latent(grid), device, dtype),
                words,
                layers,
                grid,
                device,
                options.repeats or (max(1, GPU_REPEATS // layers) if device.type == "cuda" else default_repeats("cpu")),
            )
            fallback = "reference" if reason else "error"
            for row in rows_of(case, patterns, targets, options.precision, fallback, rows.of(case.about())):
                rows.add(row)
                print(show([row]).splitlines()[-1], flush=True)
    print(f"\n{show(rows.rows)}\n\n{NOTE}")
    if reason:
        print(TORCH_NOTE.format(reason=reason))
    return int(any(row.get("failed") for row in rows.rows))


def _gigabytes(value: int) -> str:
    return f"{value / 1e9:.2f}"


COLUMNS = (
    Column("what", "what"),
    Column("layers", "layers"),
    Column("tokens", "tokens"),
    Column("grid", "grid", lambda grid: "x".join(map(str, grid))),
    Column("pattern", "pattern"),
    Column("precision", "precision"),
    Column("asked", "asked"),
    Column("backend", "backend"),
    Column("density", "density", "{:.3f}".format),
    Column("error", "error", "{:.4f}".format),
    Column("dense ms", "dense_ms", milliseconds),
    Column("again", "dense_again_ms", milliseconds),
    Column("attention", "attention_share", "{:.1%}".format),
    Column("sparse ms", "sparse_ms", milliseconds),
    Column("again", "sparse_again_ms", milliseconds),
    Column("x dense", "speed_up", "{:.2f}".format),
    Column("peak GB", "peak_bytes", _gigabytes),
    Column("dense peak GB", "dense_peak_bytes", _gigabytes),
    Column("remark", "remark"),
)


def show(rows: list[dict[str, Any]]) -> str:
    """The rows under the columns that at least one of them fills."""
    return columns_of(COLUMNS, [_with_speed_up(row) for row in rows])


def _with_speed_up(row: dict[str, Any]) -> dict[str, Any]:
    if "dense_ms" not in row:
        return row
    fastest = min(row["dense_ms"], row["dense_again_ms"])
    return {**row, "speed_up": fastest / max(row["sparse_ms"], row["sparse_again_ms"])}
