"""`quality`: every pattern's error at equal density, on what a trained model computed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dit_accel.accel.cli import Problem
from dit_accel.accel.cli.needs import kernel_problem, need_patterns, need_writable_file
from dit_accel.accel.cli.table import table
from dit_accel.accel.writing import replacing

NOTE = (
    "error: relative L2 of the attention output against fp32 dense attention, mean over the calls; in brackets as a "
    "multiple of raster pooled blocks without a tail. Every call has at most the density of its column and at least "
    "0.85 of it; n/a: the pattern cannot do that."
)
MASS_NOTE = "mass: true attention mass of the kept blocks, from sampled rows, mean over the calls."
PRODUCTS_NOTE = (
    "products: what the attention kernel multiplies for a kept pair of a query and a key, mean over the calls; blocks "
    "end inside its tiles of 128 queries, and inside chunks of 16 keys, or of 64 where blocks nearly fill those."
)
BASELINE = ("pooled raster", False)


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json if asked. Raises Problem when something is missing."""
    if options.json:
        need_writable_file("--json", options.json)
    import torch

    from dit_accel.accel.bench.inputs import captured_inputs
    from dit_accel.accel.cli.machine import machine
    from dit_accel.tests.bench import quality

    need_patterns(options.pattern)
    sources = [source for source in quality.SOURCES if source.pattern in (options.pattern or quality.PATTERNS)]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    calls = []
    for path in options.capture:
        try:
            calls += [(path, inputs) for inputs in captured_inputs(path)]
        except (ValueError, OSError) as error:
            raise Problem(f"--capture: {error}") from error
    head_dim = calls[0][1].q.shape[-1]
    reason = kernel_problem(torch.bfloat16, head_dim)
    where = machine(reason)
    no_sol = quality.sol_attn_problem(head_dim)
    print(f"{where['device']}; torch {where['torch']}; {where['platform']}", flush=True)
    rows = []
    for number, (path, inputs) in enumerate(calls, 1):
        print(f"{number}/{len(calls)} {path.name}: {inputs.source}", flush=True)
        backend = "torch" if reason else "triton"
        judged = quality.judge(inputs, options.density, sources, device=device, backend=backend)
        if no_sol is None:
            judged += quality.judge_sol_attn(inputs, options.density, device=device)
        origin = {"capture": path.name, "call": inputs.source, "inputs_sha256": inputs.sha256}
        rows += [{**origin, "tokens": inputs.layout.total, "grid": list(inputs.layout.grid), **row} for row in judged]
    if options.json:
        report = {"format": "dit-accel/bench-quality", "version": 1, "machine": where, "rows": rows}
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"\n{show(rows, options.density)}\n\n{NOTE}\n\n{show_mass(rows, options.density)}\n\n{MASS_NOTE}")
    print(f"\n{show_products(rows, options.density)}\n\n{PRODUCTS_NOTE}")
    print("\n" + "\n".join(worse_with_tail(rows) or ["The tail lowers the error of every call."]))
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


def show_products(rows: list[dict[str, Any]], densities: list[float]) -> str:
    """A table of the products that the attention kernel makes for each kept pair, mean over the calls."""
    shares = [{**row, "share": row["products"] / row["density"]} for row in rows if row["products"] is not None]
    return _table_without_tail(shares, "share", "products", densities, "{:.2f}")


def show_mass(rows: list[dict[str, Any]], densities: list[float]) -> str:
    """A table of the attention mass that the kept blocks really hold, mean over the calls."""
    known = [row for row in rows if row["mass"] is not None]
    return _table_without_tail(known, "mass", "mass", densities, "{:.3f}")


def _table_without_tail(rows: list[dict[str, Any]], field: str, header: str, densities: list[float], form: str) -> str:
    """Means over the calls of a field that a tail does not change."""
    cells = []
    for source in dict.fromkeys(row["source"] for row in rows):
        means = [_mean(rows, field, source, False, density) for density in densities]
        cells.append((source, *("n/a" if mean is None else form.format(mean) for mean in means)))
    return table(("pattern", *(f"{header} at {density}" for density in densities)), cells)


def worse_with_tail(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each source and density at which the tail raises the error of some call: how many, and which."""
    errors = {
        (row["source"], row["asked_density"], row["capture"], row["call"], row["tail"]): row["error"] for row in rows
    }
    worse: dict[tuple[str, float], list[str]] = {}
    for (source, density, capture, call, tail), error in errors.items():
        without = errors.get((source, density, capture, call, False))
        if tail and without is not None and error > without:
            worse.setdefault((source, density), []).append(f"{capture} {call} ({without:.4f} -> {error:.4f})")
    return [
        f"The tail raises the error of {source} at {density} in {len(calls)}: {', '.join(calls)}"
        for (source, density), calls in worse.items()
    ]


def mean_error(rows: list[dict[str, Any]], source: str, tail: bool, density: float) -> float | None:
    """Over all calls; None unless every call has that row."""
    return _mean(rows, "error", source, tail, density)


def _mean(rows: list[dict[str, Any]], name: str, source: str, tail: bool, density: float) -> float | None:
    calls = {row["inputs_sha256"] for row in rows}
    values = [
        row[name] for row in rows if (row["source"], row["tail"], row["asked_density"]) == (source, tail, density)
    ]
    return sum(values) / len(values) if len(values) == len(calls) else None
