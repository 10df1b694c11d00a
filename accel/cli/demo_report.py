"""What the demo measured: the report, its checks, and the files it leaves."""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..headless.clip import write_clip
from ..report.metrics import psnr, ssim
from ..report.pictures import contact_sheet, difference
from ..version import PACK_VERSION
from . import Problem
from .demo_run import Result
from .needs import TORCH_NOTE
from .table import table

RATE = 16
MAX_DENSITY = 0.9
# A clip of pure noise is 8 dB away from a picture, another clip of the same prompt 10 to 15.
MIN_PSNR = 15.0
NOTE = (
    "The model is small and was trained on a handful of clips (workflows/models/MODEL_CARD.md). It has real "
    "attention, and its errors say how a pattern behaves; at so few tokens nothing is won in time."
)


def make_report(
    results: Mapping[str, Result], settings: Mapping[str, Any], *, no_kernel_because: str
) -> dict[str, Any]:
    """The numbers of report.json. PSNR (dB, peak 1) and SSIM are those of the frames against the dense ones.

    no_kernel_because: why sparse attention ran in plain PyTorch; empty where a kernel could run.
    """
    dense = results["dense"]
    return {
        "format": "dit-accel/demo",
        "version": 2,
        "pack": PACK_VERSION,
        "settings": dict(settings),
        "video_tokens": math.prod(dense.latent.shape[2:]) // 4,
        "frames": list(dense.frames.shape),
        "dense_seconds": dense.seconds,
        "patterns": {name: _row(dense, result) for name, result in results.items() if name != "dense"},
        "times": "one run each, whole graph, model loaded",
        "notes": [NOTE, *([TORCH_NOTE.format(reason=no_kernel_because)] if no_kernel_because else [])],
        "machine": {
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "no_kernel_because": no_kernel_because or None,
            "cpu_threads": torch.get_num_threads(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }


def _row(dense: Result, sparse: Result) -> dict[str, Any]:
    log = sparse.log or {"sparse": 0, "density": None, "backend": None, "dense": {}}
    decibel = psnr(dense.frames, sparse.frames)
    return {
        "sparse_calls": log["sparse"],
        "sparse_share": sparse.sparse_share(),
        "dense_calls": log["dense"],
        "backend": log["backend"],
        "density": log["density"],
        "finite": bool(sparse.latent.isfinite().all() and dense.latent.isfinite().all()),
        "identical": torch.equal(dense.latent, sparse.latent),
        "latent_error": ((sparse.latent - dense.latent).norm() / dense.latent.norm()).item(),
        "psnr_db": decibel if math.isfinite(decibel) else None,
        "ssim": ssim(dense.frames, sparse.frames),
        "seconds": sparse.seconds,
    }


def check(report: Mapping[str, Any]) -> None:
    """Raises Problem when the run proves nothing."""
    for name, row in report["patterns"].items():
        if not row["sparse_calls"]:
            raise Problem(f"{name}: no sparse call happened; `dit-accel doctor` says what is usable here")
        if row["sparse_share"] < 1:
            raise Problem(f"{name}: only {row['sparse_share']:.0%} of the calls were sparse: {row['dense_calls']}")
        if not row["finite"]:
            raise Problem(f"{name}: a result holds numbers that are not finite: sampling failed")
        if row["density"] > MAX_DENSITY:
            raise Problem(
                f"{name}: the density is {row['density']:.3f}, above {MAX_DENSITY}: at top_p "
                f"{report['settings']['top_p']} this is hardly sparse; lower --top-p or take more --frames"
            )
        if row["identical"]:
            raise Problem(f"{name}: the dense and the sparse clip are identical: sparse attention had no effect")
        if row["psnr_db"] is not None and row["psnr_db"] < MIN_PSNR:
            raise Problem(
                f"{name}: the PSNR against the dense clip is {row['psnr_db']:.1f} dB, below {MIN_PSNR}: sparse "
                "attention computes something else than dense attention"
            )


def write(output: Path, results: Mapping[str, Result], report: Mapping[str, Any]) -> None:
    """<name>.mp4 for every result, contact_sheet.png and report.json in the folder output: all of them or, where
    one fails, none."""
    rows = {}
    for name, result in results.items():
        rows[name] = result.frames
        if name != "dense":
            visible, gain = difference(results["dense"].frames, result.frames)
            rows[f"{name} - dense\nx {gain}"] = visible
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"

    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=output) as staging:
        partial = Path(staging)
        for name, result in results.items():
            write_clip(partial / f"{name}.mp4", result.frames, RATE)
        contact_sheet(rows).save(partial / "contact_sheet.png")
        (partial / "report.json").write_text(text, "utf-8")
        for file in partial.iterdir():
            file.replace(output / file.name)


def show(report: Mapping[str, Any]) -> str:
    """The report as the user reads it."""
    header = ("pattern", "density", "PSNR dB", "SSIM", "time s", "sparse share", "backend")
    rows = [("dense", "1.000", "", "", f"{report['dense_seconds']:.1f}", "", "")]
    for name, row in report["patterns"].items():
        decibel = "infinite" if row["psnr_db"] is None else f"{row['psnr_db']:.1f}"
        cells = (f"{row['density']:.3f}", decibel, f"{row['ssim']:.4f}", f"{row['seconds']:.1f}")
        rows.append((name, *cells, f"{row['sparse_share']:.2f}", row["backend"]))
    tokens = f"{report['video_tokens']} video tokens, {report['settings']['steps']} steps"
    return "\n".join([table(header, rows), "", tokens, *report["notes"]])
