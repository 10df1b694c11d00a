"""`dit-accel demo`: one graph in a headless ComfyUI, dense and with every pattern, on the model that comes along."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ..headless.server import GraphFailed, GraphRejected, ServerDied
from . import Problem
from .needs import kernel_problem, need_comfyui, need_patterns, need_prompt, need_writable_folder

HEAD_DIM = 128
# Pixels per token: 8 in the autoencoder, 2 in the transformer's patches.
TOKEN = 16
ASPECT = 3 / 5


def clip_size(options: argparse.Namespace) -> dict[str, int]:
    """Width, height, frames and steps from the options, in multiples that the model takes. Raises Problem."""
    if options.steps < 2:
        raise Problem(f"--steps: expected 2 or more, since the first stays dense; found {options.steps}")
    width = max(TOKEN, options.width // TOKEN * TOKEN)
    return {
        "width": width,
        "height": max(TOKEN, round(width * ASPECT / TOKEN) * TOKEN),
        # The autoencoder takes four frames at a time, after the first.
        "frames": (options.frames - 1) // 4 * 4 + 1,
        "steps": options.steps,
    }


def run(options: argparse.Namespace) -> int:
    """Leaves a clip per result, contact_sheet.png and report.json in options.output and prints the table.

    Raises Problem, and leaves nothing, when something is missing or the result proves nothing
    (demo_report.check).
    """
    need_writable_folder("--output", options.output)
    need_prompt(options.prompt)
    settings = {**clip_size(options), "prompt": options.prompt, "top_p": options.top_p}
    comfyui = need_comfyui()
    # ComfyUI's requirements are there, so torch and PyAV are.
    import torch

    from ..attention.planners import PATTERNS
    from . import demo_report, demo_run

    need_patterns(options.pattern)
    reason = kernel_problem(torch.bfloat16, HEAD_DIM)
    patterns = options.pattern or list(PATTERNS)
    with tempfile.TemporaryDirectory(prefix="dit-accel-") as base:
        try:
            results = demo_run.sample(comfyui, Path(base), patterns, **settings)
        except (GraphRejected, GraphFailed, ServerDied, TimeoutError) as error:
            raise Problem(f"ComfyUI failed: {error}") from error
    report = demo_report.make_report(results, settings, no_kernel_because=reason)
    demo_report.check(report)
    demo_report.write(options.output, results, report)
    print(f"\n{demo_report.show(report)}")
    files = [*(f"{name}.mp4" for name in results), "contact_sheet.png", "report.json"]
    print(f"Written to {options.output}: {', '.join(files)}")
    return 0
