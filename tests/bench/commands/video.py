"""`video`: whole sampled clips, every pattern against dense, at equal density."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

from dit_accel.accel.cli import Problem
from dit_accel.accel.cli.demo import HEAD_DIM, clip_size
from dit_accel.accel.cli.needs import (
    TORCH_NOTE,
    kernel_problem,
    need_comfyui,
    need_patterns,
    need_prompt,
    need_writable_file,
)
from dit_accel.accel.cli.table import table
from dit_accel.accel.headless.server import GraphFailed, GraphRejected, ServerDied
from dit_accel.accel.writing import replacing

NOTE = (
    "PSNR in dB / SSIM of the frames against the dense ones, and with --times the time of the dense run over that of "
    "the sparse one, without decoding; medians over prompts and seeds. Each query block keeps the density of its "
    "column; the first fifth of the schedule and block 0 are dense."
)


def run(options: argparse.Namespace) -> int:
    """Prints the table, and writes options.json if asked. Raises Problem when something is missing, or when a run
    was not sparse."""
    if options.json:
        need_writable_file("--json", options.json)
    for prompt in options.prompt:
        need_prompt(prompt)
    comfyui = need_comfyui()
    # ComfyUI's requirements are there, so torch is.
    import torch

    from dit_accel.accel.attention.planners import PATTERNS
    from dit_accel.accel.cli.demo_run import Sampler
    from dit_accel.accel.cli.machine import machine

    need_patterns(options.pattern)
    reason = kernel_problem(torch.bfloat16, HEAD_DIM)
    where = machine(reason)
    size = clip_size(options)
    rows = []
    with tempfile.TemporaryDirectory(prefix="dit-accel-") as base:
        try:
            with Sampler(comfyui, Path(base)) as sampler:
                for prompt in options.prompt:
                    for seed in range(options.seeds):
                        settings = {**size, "prompt": prompt, "seed": seed}
                        patterns = options.pattern or list(PATTERNS)
                        rows += _compare(sampler, patterns, options.density, settings, options.times)
        except (GraphRejected, GraphFailed, ServerDied, TimeoutError) as error:
            raise Problem(f"ComfyUI failed: {error}") from error
    if options.json:
        report = {"format": "dit-accel/bench-video", "version": 1, "machine": where, "clip": size, "rows": rows}
        with replacing(options.json) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    print(f"\n{show(rows, options.density)}\n\n{NOTE}")
    if reason:
        print(TORCH_NOTE.format(reason=reason))
    return 0


def _compare(
    sampler, patterns: list[str], densities: list[float], settings: dict[str, Any], times: bool
) -> list[dict[str, Any]]:
    from dit_accel.accel.report.metrics import psnr, ssim

    tag = f"{settings['prompt']}_{settings['seed']}"
    dense = sampler.run(f"dense_{tag}", None, {}, settings, warm=False)
    dense_seconds = sampler.seconds(f"dense_{tag}", None, {}, settings) if times else None
    rows = []
    for pattern in patterns:
        for density in densities:
            budget = {"top_p": 1.0, "floor": 0.0, "max_density": density}
            result = sampler.run(f"{pattern}_{density}_{tag}", pattern, budget, settings, warm=False)
            if result.sparse_share() != 1:
                raise Problem(f"{pattern}: not every call in the window was sparse: {result.log}")
            decibel = psnr(dense.frames, result.frames)
            seconds = sampler.seconds(f"{pattern}_{density}_{tag}", pattern, budget, settings) if times else None
            rows.append(
                {
                    "prompt": settings["prompt"],
                    "seed": settings["seed"],
                    "pattern": pattern,
                    "asked_density": density,
                    "density": result.log["density"],
                    "psnr_db": decibel if math.isfinite(decibel) else None,
                    "ssim": ssim(dense.frames, result.frames),
                    "backend": result.log["backend"],
                    "seconds": seconds,
                    "dense_seconds": dense_seconds,
                }
            )
    return rows


def show(rows: list[dict[str, Any]], densities: list[float]) -> str:
    """Medians, a row for each pattern."""
    header = ("pattern", *(text for density in densities for text in (f"at {density}", "measured density")))
    cells = []
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        texts = []
        for density in densities:
            own = [row for row in rows if (row["pattern"], row["asked_density"]) == (pattern, density)]
            # Without a difference PSNR has no value: nothing is better.
            decibel = statistics.median(math.inf if row["psnr_db"] is None else row["psnr_db"] for row in own)
            likeness, measured = (statistics.median(row[key] for row in own) for key in ("ssim", "density"))
            likenesses = f"{decibel:.1f} / {likeness:.3f}"
            if own[0].get("seconds"):
                gain = statistics.median(row["dense_seconds"] / row["seconds"] for row in own)
                likenesses += f" / {gain:.2f}x"
            texts += [likenesses, f"{measured:.3f}"]
        cells.append((pattern, *texts))
    return table(header, cells)
