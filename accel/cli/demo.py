"""`dit-accel demo`: one graph in a headless ComfyUI, dense and sparse, on real frames."""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
import tempfile
from pathlib import Path

from ..comfy.server import GraphFailed, GraphRejected, ServerDied, find_comfyui, missing_comfyui
from . import Problem
from .checks import kernel_problem, need_clip, need_writable_folder

# Every second frame: more motion in few frames.
STRIDE = 2


def run(options: argparse.Namespace) -> int:
    """Leaves dense.mp4, sparse.mp4, difference.png and report.json in options.output and prints the table.

    Raises Problem, and leaves nothing, when something is missing or the result proves nothing
    (demo_report.check).
    """
    need_writable_folder("--output", options.output)
    comfyui = _comfyui()
    # ComfyUI's requirements are there, so torch and PyAV are.
    import torch

    from ..bench import clip
    from . import demo_model, demo_report, demo_run

    file = need_clip()
    most = clip.FRAMES // STRIDE
    if options.frames > most:
        raise Problem(f"--frames: expected at most {most}, found {options.frames}")
    # Whole tokens: a latent pixel is 4 pixels, a token 2 latent pixels.
    width = max(8, options.width // 8 * 8)
    height = max(8, round(width * clip.HEIGHT / clip.WIDTH / 8) * 8)
    frames = clip.read_frames(file, range(0, options.frames * STRIDE, STRIDE), height, width)

    reason = kernel_problem(torch.float16, demo_model.DIM // demo_model.HEADS)
    # Where a kernel can run, the demo is there to show it: one that fails must not pass unseen.
    fallback = "reference" if reason else "error"
    settings = {"steps": options.steps, "top_p": options.top_p}
    with tempfile.TemporaryDirectory(prefix="dit-accel-") as base:
        try:
            dense, sparse = demo_run.sample(comfyui, Path(base), frames, fallback=fallback, **settings)
        except (GraphRejected, GraphFailed, ServerDied, TimeoutError) as error:
            raise Problem(f"ComfyUI failed: {error}") from error
    report = demo_report.make_report(dense, sparse, frames, no_kernel_because=reason, **settings)
    demo_report.check(report)
    demo_report.write(options.output, dense, sparse, report, clip.RATE // STRIDE)
    print(f"\n{demo_report.show(report)}")
    print(f"Written to {options.output}: dense.mp4, sparse.mp4, difference.png, report.json")
    return 0


def _comfyui() -> Path:
    comfyui = find_comfyui()
    if comfyui is None:
        raise Problem(missing_comfyui())
    missing = missing_requirements((comfyui / "requirements.txt").read_text("utf-8"))
    if missing:
        raise Problem(
            f"requirements of ComfyUI are missing ({', '.join(missing)}): "
            f'"{sys.executable}" -m pip install -r "{comfyui / "requirements.txt"}"'
        )
    return comfyui


def missing_requirements(text: str) -> list[str]:
    """Names of the distributions in a requirements file that are not installed, up to ComfyUI's line
    `#non essential dependencies`. Versions are left to pip and to ComfyUI, which warns about them."""
    missing = []
    for line in text.lower().partition("#non essential")[0].splitlines():
        match = re.match(r"[a-z0-9][a-z0-9._-]*", line.strip())
        if match is None:
            continue
        try:
            importlib.metadata.version(match[0])
        except importlib.metadata.PackageNotFoundError:
            missing.append(match[0])
    return missing
