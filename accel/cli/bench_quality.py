"""`dit-accel bench quality`: every pattern's error at equal density, on what a trained model computed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from ..files import replacing
from . import Problem
from .checks import kernel_problem, need_writable_file
from .table import table

NOTE = (
    "error: relative L2 of the attention output against fp32 dense attention, mean over the calls; in brackets as a "
    "multiple of raster pooled blocks without a tail. Every call has at most the density of its column and at least "
    "0.85 of it; n/a: the pattern cannot do that."
)
BASELINE = ("pooled raster", False)


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json if asked. Raises Problem when something is missing."""
    if options.json:
        need_writable_file("--json", options.json)
    import torch

    from ..bench import quality
    from ..bench.inputs import captured_inputs
    from .machine import machine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls = []
    for path in options.capture:
        try:
            calls += [(path, inputs) for inputs in captured_inputs(path)]
        except (ValueError, OSError) as error:
            raise Problem(f"--capture: {error}") from error
    reason = kernel_problem(torch.bfloat16, calls[0][1].q.shape[-1])
    where = machine(reason)
    no_sol = quality.sol_attn_problem()
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)
    rows = []
    for number, (path, inputs) in enumerate(calls, 1):
        print(f"{number}/{len(calls)} {path.name}: {inputs.source}", flush=True)
        found = quality.judge(inputs, options.density, device=device, backend="reference" if reason else "triton")
        if no_sol is None:
            found += quality.judge_sol_attn(inputs, options.density, device=device)
        origin = {"capture": path.name, "call": inputs.source, "inputs_sha256": inputs.sha256}
        rows += [{**origin, "tokens": inputs.layout.total, "grid": list(inputs.layout.grid), **row} for row in found]
    if options.json:
        report = {"format": "dit-accel/bench-quality", "version": 1, "machine": where, "rows": rows}
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"\n{show(rows, options.density)}\n\n{NOTE}")
    if no_sol:
        print(f"No row for sol_attn: {no_sol}.")
    return 0


def show(rows: list[dict[str, Any]], densities: list[float]) -> str:
    """A table of mean errors and, in brackets, their ratio to that of raster pooled blocks without a tail."""
    baseline = {density: mean_error(rows, *BASELINE, density) for density in densities}
    header = ("pattern", "tail", *(f"error at {density}" for density in densities))
    cells = []
    for source in dict.fromkeys(row["source"] for row in rows):
        for tail in (False, True):
            errors = [mean_error(rows, source, tail, density) for density in densities]
            texts = [
                "n/a"
                if error is None
                else f"{error:.4f}" + (f" ({error / baseline[density]:.2f})" if baseline[density] else "")
                for density, error in zip(densities, errors, strict=True)
            ]
            cells.append((source, "on" if tail else "off", *texts))
    return table(header, cells)


def mean_error(rows: list[dict[str, Any]], source: str, tail: bool, density: float) -> float | None:
    """Over all calls; None unless every call has that row."""
    calls = {row["inputs_sha256"] for row in rows}
    errors = [
        row["error"] for row in rows if (row["source"], row["tail"], row["asked_density"]) == (source, tail, density)
    ]
    return sum(errors) / len(errors) if len(errors) == len(calls) else None
